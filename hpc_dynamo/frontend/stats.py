"""Counters of a frontend process, updated for every token. The head adds those of all processes."""

from collections import Counter

import msgspec

from hpc_dynamo.histogram import Histogram

BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
)  # fmt: skip
REPORT_INTERVAL_S = 1.0  # between two reports of a process

COUNTERS = (
    "active", "connections", "cancelled", "retried", "forwarded", "forwarding", "prompt_tokens",
    "tasks", "defects",
)  # fmt: skip


def _latencies() -> Histogram:
    return Histogram(BOUNDS_S)


class FrontendStats(msgspec.Struct, kw_only=True):
    """Counts since the start of the process. Histograms are in seconds."""

    responses: dict[str, int] = msgspec.field(default_factory=Counter)  # by "path status"
    rejections: dict[str, int] = msgspec.field(default_factory=dict)  # see HttpServer.rejections
    active: int = 0  # requests in progress
    connections: int = 0  # open connections
    tasks: int = 0  # asyncio's
    defects: int = 0  # see hpc_dynamo.defects
    cancelled: int = 0  # requests whose client disconnected
    retried: int = 0  # attempts on another worker
    migrations: dict[str, int] = msgspec.field(default_factory=Counter)  # moved streams by outcome
    forwarded: int = 0  # requests to the next job of the run
    forwarding: int = 0  # requests to the next job that are in progress
    prompt_tokens: int = 0  # computed before routing
    ttft: Histogram = msgspec.field(default_factory=_latencies)  # time to first token
    itl: Histogram = msgspec.field(default_factory=_latencies)  # time between tokens of streams
    seconds: Histogram = msgspec.field(default_factory=_latencies)  # duration of requests

    def add(self, other: "FrontendStats") -> None:
        """Add the counts of another process."""
        for name in ("responses", "rejections", "migrations"):
            own, added = getattr(self, name), getattr(other, name)
            for key, count in added.items():
                own[key] = own.get(key, 0) + count
        for name in COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.ttft += other.ttft
        self.itl += other.itl
        self.seconds += other.seconds


class FrontendReport(msgspec.Struct):
    """Sent by each frontend process to the head every second, as MessagePack.

    `by_model` has an entry per model. The entry with the empty name counts what belongs to no
    model, such as connections, and everything in a run of one model.
    """

    by_model: dict[str, FrontendStats] = {}
    index: int = 0  # index of the process; its restarts have the same
    notices: dict[str, str] = {}  # by model: reason why texts are not routed by KV cache

    @property
    def forwarding(self) -> int:
        return sum(stats.forwarding for stats in self.by_model.values())

    def add(self, other: "FrontendReport") -> None:
        for model, stats in other.by_model.items():
            self.by_model.setdefault(model, FrontendStats()).add(stats)
        self.notices |= other.notices

    def after_exit(self) -> "FrontendReport":
        """Reset what ends with the process, and return self."""
        for stats in self.by_model.values():
            stats.active = stats.connections = stats.forwarding = stats.tasks = 0
        self.notices.clear()
        return self
