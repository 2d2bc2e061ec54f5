"""Runs the same load on real simulator ranks and in virtual time (benchmarks.planner --real).

Real ranks are `hpc-dynamo serve` with simulator engines on this machine, with an open loop over
HTTP. The load is smaller than in the other runs, and each token stands for eight, as in
benchmarks.replay. The virtual run has the same sizes. With a planner, both use one profile.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks.planner.loads import TARGETS, Load, turning
from benchmarks.replay.engine import Engine as Sizes
from benchmarks.replay.hpc_dynamo_target import NAME, hpc_dynamo
from benchmarks.replay.load import Seen as Heard
from benchmarks.replay.load import replay
from benchmarks.replay.targets import Setting
from benchmarks.replay.trace import ENGINE_BLOCK, Scale
from benchmarks.replay.trace import Request as Sent
from hpc_dynamo import config as c
from hpc_dynamo import jsonl
from hpc_dynamo.config import Planner, PlannerMode, Role, TopologyKind
from hpc_dynamo.demo.provision import provision
from hpc_dynamo.http import HttpClient
from hpc_dynamo.planner.interpolation import load_performance
from hpc_dynamo.planner.planner import RolePlanner
from hpc_dynamo.planner.profile import EngineProfile, Measurement, Metric, OperatingPoint
from hpc_dynamo.planner.records import PlannerRecord
from hpc_dynamo.plotting import Curve, Panel, Style
from hpc_dynamo.profiler import grid
from hpc_dynamo.router import AdmissionLimits as Bounds
from hpc_dynamo.run import Run
from hpc_dynamo.simulation import (
    EngineModel,
    LatencyTargets,
    SimulatedJob,
    TimingPerformance,
    simulate,
)
from hpc_dynamo.simulation.pool import RoleChangeModel
from hpc_dynamo.simulation.result import RequestResult, SimulationResult, mean
from hpc_dynamo.simulation.worker import EngineSizes

SCALE = Scale(compress=1, shrink=8)
STRETCH = 0.15  # factor of the load's duration: three minutes
RATE_PER_RANK = 0.8 / 16  # factor of the load's rate
WIDE_S = 10.0  # duration of a point of a curve


@dataclass(frozen=True)
class Case:
    """A load and an initial split of the ranks, for both runs."""

    load: Load
    ranks: int
    prefill: int
    rules: Planner | None = None  # None: a static split

    def planned(self, by: PlannerMode, profile: Path) -> "Case":
        """Return this case with a planner."""
        goal = targets()
        rules = Planner(mode=by, profile=str(profile), ttft_s=goal.ttft_s, itl_s=goal.itl_s)
        return replace(self, rules=rules)

    @property
    def name(self) -> str:
        split = f"{self.prefill} + {self.ranks - self.prefill}"
        return f"planner={self.rules.mode} from {split}" if self.rules else split


@dataclass(frozen=True)
class Split(Setting):
    """Target settings with a number of prefill workers."""

    prefill: int = 1

    def pools(self, kind: TopologyKind) -> dict[str, int]:
        return {"prefill": self.prefill, "decode": self.workers - self.prefill}


def load(ranks: int, seed: int) -> Load:
    """Return a load that the ranks can serve, with scaled tokens."""
    made = turning(seed, RATE_PER_RANK * ranks, STRETCH)
    small = [
        replace(
            r,
            prompt_tokens=max(1, r.prompt_tokens // SCALE.shrink),
            response_tokens=max(2, r.response_tokens // SCALE.shrink),
        )
        for r in made.requests
    ]
    return Load(f"turning, {ranks} ranks", small)


def targets() -> LatencyTargets:
    """Return the targets; a token stands for several, so that the ITL is larger."""
    return LatencyTargets(TARGETS.ttft_s, TARGETS.itl_s * SCALE.shrink)


def _performance() -> TimingPerformance:
    sizes = Sizes()
    timing = sizes.timing(SCALE, TopologyKind.disaggregated)
    limits = EngineSizes(sizes.sequences, sizes.step_tokens, sizes.cache_tokens // SCALE.shrink)
    return TimingPerformance(timing, timing, limits)


def virtual(case: Case) -> SimulationResult:
    engine = _performance()
    job = SimulatedJob(
        EngineModel(engine.sizes, engine.decode),
        {Role.prefill: case.prefill, Role.decode: case.ranks - case.prefill},
        targets(),
        router=c.Router(),
        limits=Bounds(max_requests_per_worker=2 * engine.max_sequences),
        block_tokens=ENGINE_BLOCK,
        role_change=RoleChangeModel(role_change_s=0.0),  # these engines need no restart
        interval_s=Planner().interval_s,
    )
    planner = RolePlanner(case.rules, load_performance(case.rules.profile)) if case.rules else None
    return simulate(job, case.load.requests, planner)


def profile(file: Path, case: Case) -> None:
    """Write the profile of the modelled engines.

    It is computed, because `hpc-dynamo profile` would take a quarter of an hour.
    """
    setting, performance = _setting(case), _performance()
    room = grid.ProfileLimits(
        context_tokens=setting.context,
        max_sequences=performance.max_sequences,
        block_tokens=ENGINE_BLOCK,
        kv_tokens=performance.sizes.cache_tokens,
        transfers=False,
    )
    points = [_point(spot, performance) for spot in grid.operating_points(room)]
    made = EngineProfile(
        model="modelled",
        engine="simulator",
        version="modelled",
        hardware="none",
        kind=TopologyKind.disaggregated,
        tensor_parallel=1,
        pipeline_parallel=1,
        data_parallel=1,
        date=datetime.now(UTC).isoformat(),
        context_tokens=room.context_tokens,
        kv_tokens=room.kv_tokens,
        max_sequences=room.max_sequences,
        startup_s=0.0,
        prompt_tokens_per_s=0.0,
        answer_tokens_per_s=0.0,
        points=tuple(points),
    )
    file.write_bytes(msgspec.json.encode(made))


def _point(spot: OperatingPoint, performance: TimingPerformance) -> Measurement:
    if spot.metric is Metric.ttft:
        seconds = performance.prefill_s(spot.prompt_tokens, spot.cached_tokens)
        return Measurement(point=spot, seconds=seconds, cached_tokens=spot.cached_tokens)
    context = spot.prompt_tokens + grid.RESPONSE_TOKENS / 2
    seconds = performance.itl_s(spot.sequences, context)
    return Measurement(point=spot, seconds=seconds, context_tokens=context)


def real(case: Case, folder: Path) -> SimulationResult:
    """Run the case on real ranks. Raises HpcDynamoError if the job does not start."""
    began, responses = asyncio.run(_asked(_setting(case), _sent(case), folder))
    seen = [_seen(each) for each in responses]
    records = list(jsonl.read(Run(folder / NAME).attempt(1).planner_file, PlannerRecord))
    flips = [record.role_change for record in records if record.role_change]
    return SimulationResult(
        results=seen,
        targets=targets(),
        gpus=case.ranks,
        seconds=max((s.ended_at for s in seen), default=0.0),
        role_changes=sum(1 for flip in flips if not flip.reason),
        failed_role_changes=sum(1 for flip in flips if flip.reason),
        roles=_roles(records, began),
        decisions=[record.decision for record in records if record.decision],
    )


def _roles(records: Sequence[PlannerRecord], began: float) -> list[tuple[float, int, int]]:
    seen = [record.decision.signals for record in records if record.decision]
    return [(max(0.0, s.at - began), s.prefill, s.decode) for s in seen]


def _sent(case: Case) -> list[Sent]:
    return [
        Sent(i, r.at, (), SCALE.block_tokens, r.prompt_tokens, r.response_tokens)
        for i, r in enumerate(case.load.requests)
    ]


def _setting(case: Case) -> Split:
    sizes, rules = Sizes(), case.rules
    context, model = sizes.longest(_sent(case), SCALE), provision().model.absolute()
    words: tuple[str, ...] = ()
    if rules:
        words = (
            *(f"planner.mode={rules.mode}", f"planner.profile={Path(rules.profile)}"),
            *(f"planner.ttft_s={rules.ttft_s}", f"planner.itl_s={rules.itl_s}"),
        )
    return Split(sizes, SCALE, case.ranks, context, model, words, case.prefill)


async def _asked(setting: Setting, sent: list[Sent], folder: Path) -> tuple[float, list[Heard]]:
    """Return the start time of the load and the responses."""
    bodies = [request.body() for request in sent]
    async with hpc_dynamo(setting, ("router=kv",))(folder, TopologyKind.disaggregated) as running:
        async with HttpClient.bearer(running.key) as http:
            began = time.time()
            return began, await replay(http, running.url, sent, bodies, lambda seen: None)


def _seen(responses: Heard) -> RequestResult:
    at = responses.due_s
    return RequestResult(
        at=at,
        prompt_tokens=responses.prompt,
        response_tokens=responses.answer,
        first_token_at=at + responses.ttft_s,
        ended_at=at + responses.end_s,
        error=responses.error,
    )


def panels(pairs: Sequence[tuple[str, SimulationResult]]) -> list[Panel]:
    """Return panels of goodput and TTFT over the arrival time."""
    good, ttft = list[Curve](), list[Curve]()
    for name, outcome in pairs:
        parts = _parts(outcome)
        at = [i * WIDE_S for i in range(len(parts))]
        counts = [sum(s.within_targets(outcome.targets) for s in part) / WIDE_S for part in parts]
        means = [mean([s.ttft_s for s in part if not s.error]) for part in parts]
        good.append(Curve(name, at, counts))
        ttft.append(Curve(name, at, means))
    curves = [Panel("in both targets, requests/s", good), Panel("TTFT s, mean", ttft, "s")]
    if any(outcome.role_changes for _, outcome in pairs):
        curves.append(Panel("prefill workers", [_prefill(*pair) for pair in pairs], "s"))
    return curves


def _prefill(name: str, outcome: SimulationResult) -> Curve:
    held = {at: prefill for at, prefill, _ in outcome.roles}  # the last counts at each time
    return Curve(name, list(held), list(held.values()), Style.steps)


def _parts(outcome: SimulationResult) -> list[list[RequestResult]]:
    last = max(s.at for s in outcome.results)
    parts: list[list[RequestResult]] = [[] for _ in range(int(last / WIDE_S) + 1)]
    for each in outcome.results:
        parts[int(each.at / WIDE_S)].append(each)
    return parts
