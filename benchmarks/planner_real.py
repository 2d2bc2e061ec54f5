"""The same load on real simulator ranks and in virtual time, for benchmarks.planner --real.

Real: `hpc-dynamo serve` with simulator engines on this machine, asked over HTTP, an open loop. It
is smaller than the other runs, and every token stands for eight, as in benchmarks.replay; the
virtual run has the very same sizes.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.planner_load import TARGETS, Load, turning
from benchmarks.replay.engine import Engine as Sizes
from benchmarks.replay.load import Seen as Heard
from benchmarks.replay.load import replay
from benchmarks.replay.ours import ours
from benchmarks.replay.setting import Setting
from benchmarks.replay.trace import ENGINE_BLOCK, Scale
from benchmarks.replay.trace import Request as Sent
from hpc_dynamo import config as c
from hpc_dynamo.config import Kind, Role
from hpc_dynamo.demo.provision import provision
from hpc_dynamo.draw import Curve, Panel
from hpc_dynamo.http import Client
from hpc_dynamo.router import Limits as Bounds
from hpc_dynamo.simulation import Engine, Job, Targets, simulate
from hpc_dynamo.simulation.outcome import Outcome, Seen, mean
from hpc_dynamo.simulation.worker import Limits

SCALE = Scale(compress=1, shrink=8)
STRETCH = 0.15  # of the load's time: three minutes
RATE_PER_RANK = 0.8 / 16  # of the load's requests
WIDE_S = 10.0  # of a point of a curve


@dataclass(frozen=True)
class Split(Setting):
    """With so many prefill workers."""

    prefill: int = 1

    def pools(self, kind: Kind) -> dict[str, int]:
        return {"prefill": self.prefill, "decode": self.workers - self.prefill}


def load(ranks: int, seed: int) -> Load:
    """What the ranks can carry, in tokens of eight."""
    made = turning(seed, RATE_PER_RANK * ranks, STRETCH)
    small = [
        replace(r, prompt=max(1, r.prompt // SCALE.shrink), answer=max(2, r.answer // SCALE.shrink))
        for r in made.requests
    ]
    return Load(f"turning, {ranks} ranks", small)


def targets() -> Targets:
    """A token of ours stands for several: so the time between two is so many times as long."""
    return Targets(TARGETS.ttft_s, TARGETS.itl_s * SCALE.shrink)


def virtual(load: Load, ranks: int, prefill: int) -> Outcome:
    sizes = Sizes()
    limits = Limits(sizes.sequences, sizes.step_tokens, sizes.cache_tokens // SCALE.shrink)
    job = Job(
        Engine(limits, sizes.timing(SCALE, Kind.disaggregated)),
        {Role.prefill: prefill, Role.decode: ranks - prefill},
        targets(),
        router=c.Router(),
        bounds=Bounds(worker_requests=2 * sizes.sequences),
        block_tokens=ENGINE_BLOCK,
    )
    return simulate(job, load.requests)


def real(load: Load, ranks: int, prefill: int, folder: Path) -> Outcome:
    """Raises HpcDynamoError where the job does not start; requests that fail are lost."""
    sent = [
        Sent(i, r.at, (), SCALE.block_tokens, r.prompt, r.answer)
        for i, r in enumerate(load.requests)
    ]
    sizes = Sizes()
    context, model = sizes.longest(sent, SCALE), provision().model.absolute()
    setting = Split(sizes, SCALE, ranks, context, model, (), prefill)
    heard = asyncio.run(_asked(setting, sent, folder))
    seen = [_seen(each) for each in heard]
    return Outcome(
        seen=seen,
        targets=targets(),
        gpus=ranks,
        seconds=max((s.end for s in seen), default=0.0),
        flips=0,
        failed=0,
        roles=[],
        decisions=[],
    )


async def _asked(setting: Setting, sent: list[Sent], folder: Path) -> list[Heard]:
    bodies = [request.body() for request in sent]
    async with ours(setting, ("router=kv",))(folder, Kind.disaggregated) as running:
        async with Client.bearer(running.key) as http:
            return await replay(http, running.url, sent, bodies, lambda seen: None)


def _seen(heard: Heard) -> Seen:
    at = heard.due_s
    return Seen(
        at=at,
        prompt=heard.prompt,
        answer=heard.answer,
        first=at + heard.ttft_s,
        end=at + heard.end_s,
        lost=heard.error,
    )


def panels(pairs: Sequence[tuple[str, Outcome]]) -> list[Panel]:
    """Goodput and TTFT over time of runs of one load, by when requests came."""
    good, ttft = list[Curve](), list[Curve]()
    for name, outcome in pairs:
        parts = _parts(outcome)
        at = [i * WIDE_S for i in range(len(parts))]
        counts = [sum(s.good(outcome.targets) for s in part) / WIDE_S for part in parts]
        means = [mean([s.ttft_s for s in part if not s.lost]) for part in parts]
        good.append(Curve(name, at, counts))
        ttft.append(Curve(name, at, means))
    return [Panel("in both targets, requests/s", good), Panel("TTFT s, mean", ttft, "s")]


def _parts(outcome: Outcome) -> list[list[Seen]]:
    last = max(s.at for s in outcome.seen)
    parts: list[list[Seen]] = [[] for _ in range(int(last / WIDE_S) + 1)]
    for each in outcome.seen:
        parts[int(each.at / WIDE_S)].append(each)
    return parts
