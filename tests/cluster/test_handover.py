"""A serving job hands over to its successor while clients go on asking."""

import asyncio
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest

from hpc_dynamo.messages import Endpoint
from hpc_dynamo.run import Attempt, Run
from tests.cluster.slurm import SlurmCluster
from tests.runs import hpc_dynamo, until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(560)]

WORDS = (
    *("engine=simulator", "name=s", "cluster.launcher=slurm", "topology=aggregated"),
    *("topology.nodes=1", "engine.args.time-scale=2", "cluster.slurm.signal_before_end_s=15"),
    *("planner.handover=true", "cluster.slurm.time=1", "--detach"),
)
TOKENS = 30
BEFORE_END_S = 14.0  # who holds on to the old URL is passed on at least until then


class Steady:
    """Clients of a run that never cease; `tally` counts whole answers by attempt and by how its
    URL was found."""

    def __init__(self, run: Run, key: str) -> None:
        self._run, self._key = run, key
        self._clients = dict[str, openai.AsyncOpenAI]()
        self.tally, self.stop = Counter[tuple[int, str]](), asyncio.Event()

    def serving(self, holds_on: bool) -> tuple[Attempt, Endpoint]:
        """Who looks it up takes the newest; who holds on, the oldest that has not ended."""
        found = [(a, e) for a in self._run.attempts() if (e := a.endpoint()) and not a.outcome()]
        if not holds_on:
            return found[-1]
        status = found[0][0].status()
        ends_at = status.ends_at if status and status.ends_at else 0.0
        return found[0] if ends_at - time.time() > BEFORE_END_S else found[-1]

    async def ask(self, holds_on: bool) -> None:
        how = "holds on" if holds_on else "looks it up"
        while not self.stop.is_set():
            attempt, endpoint = await asyncio.to_thread(self.serving, holds_on)
            client = self._clients.setdefault(
                endpoint.url,
                openai.AsyncOpenAI(base_url=endpoint.url, api_key=self._key, max_retries=0),
            )
            more: Any = {"ignore_eos": True}
            stream = await client.completions.create(
                model="simulated", prompt="hello", max_tokens=TOKENS, stream=True, extra_body=more
            )
            choices = [chunk.choices[0] async for chunk in stream if chunk.choices]
            assert choices[-1].finish_reason == "length"
            self.tally[attempt.number, how] += 1

    async def run_until(self, done: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(self.ask(holds_on=number % 2 == 0))
            try:
                await asyncio.to_thread(until, "the handover", done, 200)
            finally:
                self.stop.set()
        for client in self._clients.values():
            await client.close()


def forwarded(endpoint: Endpoint, key: str) -> float:
    asked = Request(
        endpoint.url.removesuffix("/v1") + "/metrics", headers={"Authorization": f"Bearer {key}"}
    )
    with urlopen(asked, timeout=10) as got:
        found = re.search(r"^hpc_dynamo_forwarded_total (\S+)$", got.read().decode(), re.M)
    assert found
    return float(found[1])


async def test_a_successor_takes_over_and_no_request_fails(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    done = hpc_dynamo("serve", *WORDS, cwd=shared_dir, env=cluster.env, timeout_s=100)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(shared_dir / "runs" / "s")
    first, passed_on = run.attempt(1), [0.0]
    endpoint = until("an endpoint", first.endpoint)

    def ended() -> bool:
        """The first attempt; until then, what it passes on is looked at."""
        if first.outcome():
            return True
        if run.attempt(2).endpoint() and not passed_on[-1]:
            passed_on.append(forwarded(endpoint, run.api_key()))
        return False

    steady = Steady(run, run.api_key())
    try:
        await steady.run_until(ended)
    finally:
        stopped = hpc_dynamo("stop", "name=s", cwd=shared_dir, env=cluster.env, timeout_s=100)
    assert stopped.returncode == 0, stopped.stderr
    outcome = first.outcome()
    assert outcome
    assert (outcome.exit_code, outcome.successor) == (0, 2)
    assert passed_on[-1] > 0
    assert set(steady.tally) >= {(1, "holds on"), (1, "looks it up"), (2, "looks it up")}
    until("nobody is left", lambda: not cluster.slurm("squeue", "-h").strip(), 120)
