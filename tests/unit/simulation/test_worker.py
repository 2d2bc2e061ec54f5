"""Modelled workers compared with manual results and with the simulator's scheduler."""

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.router import block_hashes
from hpc_dynamo.simulation import clock
from hpc_dynamo.simulation.worker import EngineSizes, ModelledSequence, SimulatedWorker
from hpc_dynamo.simulator.blocks import BlockPool, KvMemory
from hpc_dynamo.simulator.metrics import SimulatorMetrics
from hpc_dynamo.simulator.model import SimulatedModel
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sequence import SamplingParams, SequenceGroup
from hpc_dynamo.simulator.step import SchedulerLimits
from hpc_dynamo.timing_model import TimingModel

BLOCK = 16
TIMING = TimingModel(0.003, 0.0011, 1.3e-6, 0.0171, 0.0007, 2.3e-5)


@dataclass(frozen=True)
class Asked:
    at: float
    prompt: tuple[int, ...]
    answer: int


Times = list[tuple[float, float]]
"""Times of the first and last token of each request."""


async def _jumped(asked: list[Asked], limits: EngineSizes, timing: TimingModel) -> Times:
    loop, worker = asyncio.get_running_loop(), SimulatedWorker(limits, timing, BLOCK)

    async def one(each: Asked) -> tuple[float, float]:
        await asyncio.sleep(each.at)
        begun, done = loop.create_future(), loop.create_future()
        tokens = b"".join(token.to_bytes(4, "little") for token in each.prompt)
        hashes = memoryview(block_hashes(tokens, BLOCK)).cast("Q").tolist()
        answer = ModelledSequence(len(each.prompt), each.answer, hashes)
        answer.on_first_token = lambda: begun.set_result(loop.time())
        answer.on_done = lambda: done.set_result(loop.time())
        worker.submit(answer)
        return await begun, await done

    times = await asyncio.gather(*map(one, asked))
    assert (worker.running, worker.waiting, worker.cache.held_tokens) == (0, 0, 0)
    return list(times)


async def _stepped(asked: list[Asked], limits: EngineSizes, timing: TimingModel) -> Times:
    loop, blocks = asyncio.get_running_loop(), limits.cache_tokens // BLOCK
    model = SimulatedModel("m", BLOCK, BlockPool(blocks), KvMemory(blocks, 512))
    steps = SchedulerLimits(limits.max_sequences, limits.step_tokens)
    scheduler = Scheduler(steps, timing, model, SimulatorMetrics(blocks, BLOCK))
    running = asyncio.create_task(scheduler.run())

    async def one(number: int, each: Asked) -> tuple[float, float]:
        await asyncio.sleep(each.at)
        told, heard = asyncio.Event(), list[float]()
        sampling = SamplingParams(each.answer, ignore_eos=True)
        job = SequenceGroup(str(number), list(each.prompt), sampling, streaming=True)

        def news() -> None:
            heard.append(loop.time())
            told.set()

        job.on_update = news
        scheduler.submit(job)
        while not job.done:
            told.clear()
            await told.wait()
        return heard[0], heard[-1]

    times = await asyncio.gather(*(one(i, each) for i, each in enumerate(asked)))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    return list(times)


@st.composite
def _asked(draw: st.DrawFn) -> Asked:
    """Prompts of two families with common prefixes, at different times."""
    family, shared, own = draw(st.tuples(st.integers(1, 2), st.integers(0, 6), st.integers(1, 40)))
    number = draw(st.integers(1000, 1_000_000))
    prompt = (*((family,) * (shared * BLOCK)), *((number,) * own))
    return Asked(draw(st.integers(0, 2_000_000)) / 1e6, prompt, draw(st.integers(1, 30)))


@given(
    st.lists(_asked(), min_size=1, max_size=12, unique_by=lambda each: each.at),
    st.integers(1, 6),
    st.integers(8, 100),
    st.integers(12, 40),
)
def test_step_runs_end_with_the_single_steps(
    asked: list[Asked], sequences: int, step_tokens: int, blocks: int
) -> None:
    limits = EngineSizes(sequences, step_tokens, blocks * BLOCK, page_tokens=BLOCK)
    jumped = clock.run(_jumped(asked, limits, TIMING))
    stepped = clock.run(_stepped(asked, limits, TIMING))
    for here, there in zip(jumped, stepped, strict=True):
        assert here == pytest.approx(there, abs=1e-6)


def test_single_request_takes_the_calculated_time() -> None:
    """250 tokens in steps of 100: 100, 100, 50; then 4 more tokens, a context of 251 to 254."""
    timing = TimingModel(prefill_s_per_token=0.01, decode_s=1.0, decode_s_per_context_token=0.001)
    asked = [Asked(5.0, tuple(range(250)), 5)]
    times = clock.run(_jumped(asked, EngineSizes(4, 100, 1024), timing))
    assert times[0] == pytest.approx((7.5, 7.5 + 4 + 0.251 + 0.252 + 0.253 + 0.254))


def test_prompt_arriving_during_a_step_waits_for_its_end() -> None:
    timing = TimingModel(prefill_s_per_token=0.01, decode_s=1.0)
    asked = [Asked(0.0, (1,) * 100, 11), Asked(3.5, (2,) * 50, 1)]
    times = clock.run(_jumped(asked, EngineSizes(4, 200, 1024), timing))
    # Tokens at 1, 2, 3 and 4 s; then a step of both, 1.5 s; five steps of 1 s remain.
    assert times == [pytest.approx((1.0, 11.5)), pytest.approx((5.5, 5.5))]


def test_virtual_time_advances_and_detects_endless_waits() -> None:
    async def sleeps() -> float:
        await asyncio.sleep(86_400.0 * 30)
        return asyncio.get_running_loop().time()

    assert clock.run(sleeps()) == pytest.approx(86_400.0 * 30)

    async def stuck() -> None:
        await asyncio.Event().wait()

    with pytest.raises(clock.NoPendingTimer):
        clock.run(stuck())
