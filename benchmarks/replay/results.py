"""Results of a run in seconds of the trace; medians and ranges over runs."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from benchmarks.frontend.streams import quantile
from benchmarks.replay.load import Seen
from benchmarks.replay.oracle import Oracle
from benchmarks.replay.trace import Scale

CURVE = tuple(i / 100 for i in range(101))


class Targets(msgspec.Struct, frozen=True):
    """Targets of a response in seconds of the trace; the ITL is the mean of its tokens."""

    ttft_s: float
    itl_s: float


class Prefix(msgspec.Struct, frozen=True):
    """Prompt tokens, and those found in the prefix cache, with their source."""

    queries: float
    hits: float
    told: str

    @property
    def rate(self) -> float:
        return self.hits / self.queries if self.queries else float("nan")

    def __sub__(self, earlier: "Prefix") -> "Prefix":
        return Prefix(self.queries - earlier.queries, self.hits - earlier.hits, self.told)


class Noise(msgspec.Struct, frozen=True):
    """CPU seconds by user during the load, for `wall_s` real seconds."""

    wall_s: float
    system_s: float
    client_s: float
    others_cores: float


class Run(msgspec.Struct, frozen=True):
    """Results of one system. Times are those of the trace; `seconds` is until the last response."""

    system: str
    topology: str
    repeat: int
    words: tuple[str, ...]
    requests: int
    errors: dict[str, int]
    seconds: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    itl_mean_s: float
    itl_p50_s: float
    itl_p99_s: float
    goodput_hz: float
    prefix: Prefix | None  # counts of the engines or the router
    usage: Prefix | None  # counts of the responses
    late_p99_s: float  # delay of the client
    noise: Noise
    ttft_curve_s: list[float]  # quantiles 0 to 100 %

    @property
    def hit_rate(self) -> float:
        """Return the hit rate of the engines, else of the responses."""
        told = self.prefix or self.usage
        return told.rate if told else float("nan")


class Found(msgspec.Struct):
    """All results, as written to a file."""

    machine: str
    trace: str
    settings: dict[str, float | int | str]
    oracles: dict[str, Oracle] = msgspec.field(default_factory=dict)  # by topology
    runs: list[Run] = msgspec.field(default_factory=list)

    def of(self, topology: str) -> dict[str, list[Run]]:
        """Return the runs of a topology by system, in order."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            if run.topology == topology:
                found.setdefault(run.system, []).append(run)
        return found


class Label(msgspec.Struct, frozen=True):
    """Identifies a run."""

    system: str
    topology: str
    repeat: int
    words: tuple[str, ...] = ()


def summary(
    label: Label,
    seen: Sequence[Seen],
    scale: Scale,
    targets: Targets,
    prefix: Prefix | None,
    noise: Noise,
) -> Run:
    """Return the results of a run. Failed requests have no times, and count against goodput."""
    whole = [s for s in seen if not s.error]
    ttft = sorted(scale.trace_s(s.ttft_s) for s in whole)
    gaps = sorted(scale.trace_itl_s(gap) for s in whole for gap in s.gaps_s)
    tokens = sum(s.answer - 1 for s in whole)
    spoken_s = scale.trace_itl_s(sum(s.end_s - s.ttft_s for s in whole))
    seconds = scale.trace_s(max((s.due_s + s.end_s for s in whole), default=0.0))
    return Run(
        **msgspec.structs.asdict(label),
        requests=len(seen),
        errors=dict(Counter(s.error.partition(":")[0] for s in seen if s.error)),
        seconds=seconds,
        ttft_mean_s=statistics.fmean(ttft) if ttft else float("nan"),
        ttft_p50_s=quantile(ttft, 0.5),
        ttft_p99_s=quantile(ttft, 0.99),
        itl_mean_s=spoken_s / max(1, tokens),
        itl_p50_s=quantile(gaps, 0.5),
        itl_p99_s=quantile(gaps, 0.99),
        goodput_hz=sum(good(s, scale, targets) for s in whole) / max(seconds, 1e-9),
        prefix=prefix,
        usage=_usage(whole),
        late_p99_s=scale.trace_s(quantile(sorted(s.late_s for s in seen), 0.99)),
        noise=noise,
        ttft_curve_s=[quantile(ttft, q) for q in CURVE],
    )


def good(seen: Seen, scale: Scale, targets: Targets) -> bool:
    """Return True if a response meets both targets."""
    in_time = scale.trace_s(seen.ttft_s) <= targets.ttft_s
    return not seen.error and in_time and scale.trace_itl_s(seen.itl_s) <= targets.itl_s


def _usage(whole: Sequence[Seen]) -> Prefix | None:
    told = [s for s in whole if s.cached is not None]
    if not told:
        return None
    hits = sum(s.cached or 0 for s in told)
    return Prefix(sum(s.prompt for s in told), hits, "answers")


def median(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
    return statistics.median(map(value, runs))


def spread(runs: Sequence[Run], value: Callable[[Run], float], form: str) -> str:
    """Return the median, minimum and maximum."""
    values = [value(run) for run in runs]
    middle = format(statistics.median(values), form)
    if len(values) < 2:
        return middle
    return f"{middle} ({min(values):{form}} to {max(values):{form}})"
