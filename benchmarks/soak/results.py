"""Results of the soak benchmark, their checks and tables."""

from collections import Counter

import msgspec


class ProcessUsage(msgspec.Struct, frozen=True):
    """Resources of one process of the job, from proc(5)."""

    pid: int
    rss_mib: float
    pss_mib: float
    fds: int
    threads: int


class InjectedFault(msgspec.Struct, frozen=True):
    """Fault during the load. `error` is why it was not injected."""

    ended_s: float
    what: str
    error: str


class SoakSample(msgspec.Struct, frozen=True):
    """Measurements since the last sample; `at_s` counts from the start of the load."""

    at_s: float
    rate_hz: float  # complete responses
    other_programs_cores: float  # used by other programs; at most 0.2 in a valid run
    disconnected: int
    errors: dict[str, int]
    whole_ms: tuple[float, float]  # p50 and p99
    stream_ms: tuple[float, float]
    ttft_ms: tuple[float, float]
    gauges: dict[str, float]
    processes: dict[str, ProcessUsage]
    run_folder_mib: float = 0.0


class SoakResults(msgspec.Struct):
    """Results of a run; missing ones are empty."""

    minutes: float
    capacity_hz: float = 0.0
    rate_hz: float = 0.0
    sent: int = 0
    disconnected: int = 0
    errors: dict[str, int] = msgspec.field(default_factory=Counter)
    first_error: str = ""
    faults: list[InjectedFault] = msgspec.field(default_factory=list)
    with_faults: bool = False
    start: dict[str, ProcessUsage] = msgspec.field(default_factory=dict)
    samples: list[SoakSample] = msgspec.field(default_factory=list)
    end: dict[str, ProcessUsage] = msgspec.field(default_factory=dict)
    start_gauges: dict[str, float] = msgspec.field(default_factory=dict)
    gauges: dict[str, float] = msgspec.field(default_factory=dict)  # at the end
