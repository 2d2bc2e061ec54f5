"""What a frontend process counts. Cheap enough for every token; merged by the head."""

from collections import Counter

import msgspec

from hpc_dynamo.histogram import Histogram

BOUNDS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
)  # fmt: skip


COUNTS = (
    "active", "connections", "cancelled", "retried", "forwarded", "forwarding", "prompt_tokens",
)  # fmt: skip


def _latencies() -> Histogram:
    return Histogram(BOUNDS_S)


class FrontendStats(msgspec.Struct, kw_only=True):
    """Since the start of the process."""

    responses: dict[str, int] = msgspec.field(default_factory=Counter)  # by "path status"
    active: int = 0
    connections: int = 0
    cancelled: int = 0  # by clients that went away
    retried: int = 0  # tries on another worker
    forwarded: int = 0  # to the job that takes over
    forwarding: int = 0  # of them, those under way
    prompt_tokens: int = 0  # counted here, before routing
    ttft: Histogram = msgspec.field(default_factory=_latencies)
    itl: Histogram = msgspec.field(default_factory=_latencies)  # between pieces of streams
    seconds: Histogram = msgspec.field(default_factory=_latencies)  # whole requests

    def add(self, other: "FrontendStats") -> None:
        """Merge another process's figures into these."""
        for key, count in other.responses.items():
            self.responses[key] = self.responses.get(key, 0) + count
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.ttft += other.ttft
        self.itl += other.itl
        self.seconds += other.seconds


class FrontendReport(msgspec.Struct):
    """Of one process or more: by model, and under the empty name what is of none of several, such
    as connections, and all where there is one."""

    by_model: dict[str, FrontendStats] = {}
    notices: dict[str, str] = {}  # by model, why texts are not routed by KV cache

    @property
    def forwarding(self) -> int:
        return sum(stats.forwarding for stats in self.by_model.values())

    def add(self, other: "FrontendReport") -> None:
        for model, stats in other.by_model.items():
            self.by_model.setdefault(model, FrontendStats()).add(stats)
        self.notices |= other.notices

    def after_exit(self) -> "FrontendReport":
        """As it is once the process is gone, and all that it had under way."""
        for stats in self.by_model.values():
            stats.active = stats.connections = stats.forwarding = 0
        self.notices.clear()
        return self
