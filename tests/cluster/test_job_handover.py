"""The walltime ends under steady load; the next job takes over without failed requests."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest

from hpc_dynamo.run import Run
from tests.cluster.slurm import SlurmCluster
from tests.support.runs import hpc_dynamo, until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WORDS = (
    *("engine=simulator", "engine.args.timing=h100-8b", "topology=aggregated", "topology.nodes=1"),
    *("cluster.launcher=slurm", "planner.job_handover=true", "name=s", "--detach"),
)
TWO_MINUTES = ("cluster.slurm.time=2", "cluster.slurm.signal_before_end_s=15")
LOOK_S = 15.0  # clients look for the run's URL so often


@dataclass
class Steady:
    """Clients that stream answers in sequence and re-read the URL from time to time."""

    run: Run
    tokens: tuple[int, ...] = (20, 20, 20, 1500)  # answer lengths of a client
    failed: list[str] = field(default_factory=list)
    ended_at: list[float] = field(default_factory=list)
    stopped_at: float = 0.0
    ran_across: int = 0  # answers that began before the handover and ended after it

    async def keep_sending(self, done: Callable[[], object], timeout_s: float) -> None:
        self._stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for tokens in self.tokens:
                group.create_task(self._client(tokens))
            try:
                await asyncio.to_thread(until, "the successor alone", done, timeout_s)
            finally:
                self._stop.set()
                self.stopped_at = time.monotonic()

    async def _client(self, tokens: int) -> None:
        while not self._stop.is_set():
            url, until_s = self.run.url_file.read_text().strip(), time.monotonic() + LOOK_S
            # openai's limit for a connection, 5 s, is too short for a busy machine.
            client = openai.AsyncOpenAI(
                base_url=url, api_key=self.run.api_key(), max_retries=0, timeout=60
            )
            async with client:
                while not self._stop.is_set() and time.monotonic() < until_s:
                    await self._ask(client, tokens)

    async def _ask(self, client: openai.AsyncOpenAI, tokens: int) -> None:
        more: dict[str, Any] = {"max_tokens": tokens, "extra_body": {"ignore_eos": True}}
        first = self.run.url_file.read_text()
        try:
            stream = await client.completions.create(
                model="simulated", prompt="hello", stream=True, **more
            )
            choices = [chunk.choices[0] async for chunk in stream if chunk.choices]
            assert choices[-1].finish_reason == "length", "it was cut short"
        except Exception as e:  # noqa: BLE001  # whatever it was, it is counted
            self.failed.append(repr(e))
        self.ended_at.append(time.monotonic())
        self.ran_across += first != self.run.url_file.read_text()

    @property
    def gap_s(self) -> float:
        """Return the longest time in which no answer ended."""
        asked = [at for at in self.ended_at if at <= self.stopped_at]
        return max(b - a for a, b in pairwise(asked))


async def run_until_handed_over(
    cluster: SlurmCluster, folder: Path, words: tuple[str, ...], timeout_s: float
) -> Steady:
    """Run from the first job's start until the next job has answered for a while."""
    done = hpc_dynamo("serve", *WORDS, *words, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(folder / "runs" / "s")
    until("an endpoint", run.attempt(1).endpoint)
    steady = Steady(run)

    then = list[int]()  # answers when the first job had ended

    def single() -> bool:
        if run.attempt(1).outcome() and not then:
            then.append(len(steady.ended_at))
        return bool(then) and len(steady.ended_at) > then[0] + 50

    try:
        await steady.keep_sending(single, timeout_s)
    finally:
        hpc_dynamo("stop", "name=s", cwd=folder, env=cluster.env)
    outcome = run.attempt(1).outcome()
    assert outcome
    assert (outcome.exit_code, outcome.next_attempt) == (0, 2), outcome
    assert "drained first" in outcome.message
    print(
        f"{len(steady.ended_at)} answers, {len(steady.failed)} failed, {steady.ran_across} across"
    )
    print(f"the longest gap between two answers: {1000 * steady.gap_s:.0f} ms")
    return steady


async def test_next_job_takes_over_and_no_request_fails(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    steady = await run_until_handed_over(cluster, shared_dir, TWO_MINUTES, 300)
    assert not steady.failed
    assert steady.ran_across, "a stream was running when the next job took over"
    until("both jobs to leave", lambda: not cluster.slurm("squeue", "-h").strip(), 120)
