"""Loads of the planner benchmark, and the simulated job."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.replay.engine import Engine as Sizes
from benchmarks.replay.trace import Scale
from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.router import AdmissionLimits as Bounds
from hpc_dynamo.simulation import (
    EngineModel,
    LatencyTargets,
    LoadPhase,
    SimulatedJob,
    TraceRequest,
    read_trace,
    synthetic_load,
)
from hpc_dynamo.simulation.pool import RoleChangeModel
from hpc_dynamo.simulation.worker import EngineSizes

RANKS = 16
TARGETS = LatencyTargets(ttft_s=2.0, itl_s=0.04)
PROMPTS = (19.0, 8000, 100)  # requests/s, prompt tokens, response tokens
ANSWERS = (32.0, 500, 800)
PLATEAU_S, RAMP_S, RAMP_STEPS = 300.0, 120.0, 4


@dataclass(frozen=True)
class Load:
    """Named requests."""

    name: str
    requests: list[TraceRequest]

    @property
    def seconds(self) -> float:
        return self.requests[-1].at


def turning(seed: int = 0, rate: float = 1.0, stretch: float = 1.0) -> Load:
    """Return a load that changes from prompt-heavy to response-heavy and back.

    Phases take five minutes, with two minutes between them. `rate` scales the requests per second,
    `stretch` the duration.
    """
    phases = [replace(p, seconds=stretch * p.seconds) for p in _phases(rate)]
    return Load("turning", synthetic_load(phases, seed))


def _phases(rate: float) -> Iterator[LoadPhase]:
    for here, there in ((PROMPTS, ANSWERS), (ANSWERS, PROMPTS)):
        yield _between(here, there, 0.0, PLATEAU_S, rate)
        for step in range(RAMP_STEPS):
            share = (step + 0.5) / RAMP_STEPS
            yield _between(here, there, share, RAMP_S / RAMP_STEPS, rate)
    yield _between(PROMPTS, PROMPTS, 0.0, PLATEAU_S, rate)


def _between(
    here: tuple[float, int, int],
    there: tuple[float, int, int],
    share: float,
    seconds: float,
    rate: float,
) -> LoadPhase:
    hz, prompt, answer = (a + share * (b - a) for a, b in zip(here, there, strict=True))
    return LoadPhase(seconds, rate * hz, round(prompt), round(answer))


def trace(file: Path, speed: float, requests: int = 0) -> Load:
    """Return the production trace, `speed` times as fast."""
    return Load(f"{file.stem} x{speed:g}", read_trace(file, requests, speed))


def job(prefill: int, ranks: int = RANKS, interval_s: float = 30.0) -> SimulatedJob:
    """Return a job with the modelled engine of benchmarks.replay; a role change takes 0.5 s."""
    sizes = Sizes()
    limits = EngineSizes(sizes.sequences, sizes.step_tokens, sizes.cache_tokens)
    timing = sizes.timing(Scale(1, 1), TopologyKind.disaggregated)
    return SimulatedJob(
        EngineModel(limits, timing),
        {Role.prefill: prefill, Role.decode: ranks - prefill},
        TARGETS,
        limits=Bounds(max_requests_per_worker=2 * sizes.sequences),  # default of `serve`
        role_change=RoleChangeModel(role_change_s=0.5),
        interval_s=interval_s,
    )
