"""Continuous batching without sockets: sizes change times, never answers."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hpc_dynamo.simulator.blocks import BlockPool, KvMemory
from hpc_dynamo.simulator.metrics import SimulatorMetrics
from hpc_dynamo.simulator.model import SimulatedModel
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sequence import SamplingParams, SequenceGroup
from hpc_dynamo.simulator.step import SchedulerLimits
from hpc_dynamo.timing_model import TimingModel

WAIT_S = 20.0


@asynccontextmanager
async def scheduler(
    limits: SchedulerLimits, *, blocks: int = 64, timing: TimingModel | None = None
) -> AsyncIterator[tuple[Scheduler, BlockPool, SimulatorMetrics]]:
    pool, metrics = BlockPool(blocks), SimulatorMetrics(blocks, 16)
    model = SimulatedModel("m", 16, pool, KvMemory(blocks, 512))
    made = Scheduler(limits, timing or TimingModel(), model, metrics)
    task = asyncio.create_task(made.run())
    yield made, pool, metrics
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def job(number: int, prompt_tokens: int, tokens: int = 30) -> SequenceGroup:
    prompt = [number * 1000 + i for i in range(prompt_tokens)]
    return SequenceGroup(str(number), prompt, SamplingParams(tokens, ignore_eos=True))


async def finish(made: Scheduler, *jobs: SequenceGroup) -> list[list[int]]:
    news = asyncio.Event()
    for each in jobs:
        each.on_update = news.set
        made.submit(each)
    async with asyncio.timeout(WAIT_S):
        while not all(each.done for each in jobs):
            news.clear()
            await news.wait()
    return [each.choices[0].output_tokens for each in jobs]


def work() -> list[SequenceGroup]:
    return [job(i, prompt_tokens=1 + 17 * i % 160) for i in range(30)]


async def test_neither_batching_nor_chunks_nor_scarcity_change_an_answer() -> None:
    seen = list[list[list[int]]]()
    for limits, blocks in [
        (SchedulerLimits(), 1000),
        (SchedulerLimits(max_num_seqs=1), 1000),
        (SchedulerLimits(max_num_seqs=5, max_num_batched_tokens=7), 1000),
        (SchedulerLimits(), 13),
    ]:
        async with scheduler(limits, blocks=blocks) as (made, pool, _):
            seen.append(await finish(made, *work()))
            assert pool.num_free == blocks
    assert all(answers == seen[0] for answers in seen)
    assert len({tuple(answer) for answer in seen[0]}) == 30


async def test_what_a_cached_prefix_saves_is_not_computed_twice() -> None:
    timing = TimingModel(prefill_s_per_token=0.001)
    async with scheduler(SchedulerLimits(), timing=timing) as (made, _, metrics):
        took = list[float]()
        for _ in range(2):
            began = time.monotonic()
            await finish(made, job(1, prompt_tokens=161, tokens=1))
            took.append(time.monotonic() - began)
        assert took[0] > 0.155
        assert took[1] < 0.1
        assert (metrics.prefix_queries, metrics.prefix_hits) == (322, 160)


async def test_an_unfinished_chunk_is_not_found_in_the_cache() -> None:
    async with scheduler(SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=5)) as (
        made,
        _,
        metrics,
    ):
        one, two = await finish(made, job(1, 100), job(1, 100))
        assert one == two
        assert metrics.prefix_hits % 16 == 0


@pytest.mark.parametrize("budget", [512, 4096])
async def test_prompts_that_arrive_together_share_the_prefix_that_the_first_computes(
    budget: int,
) -> None:
    """Recorded with vLLM 0.32.0: of eight prompts of 1,200 shared and 30 own tokens, sent at
    once, seven report the whole blocks of the shared part as cached, with either step budget."""
    prompts = [[*range(1200), *range(2000 + 30 * i, 2030 + 30 * i)] for i in range(8)]
    jobs = [
        SequenceGroup(str(i), p, SamplingParams(4, ignore_eos=True)) for i, p in enumerate(prompts)
    ]
    limits = SchedulerLimits(max_num_batched_tokens=budget)
    async with scheduler(limits, blocks=200) as (made, _, metrics):
        await finish(made, *jobs)
        assert [each.choices[0].cached_tokens for each in jobs] == [0, *[1200] * 7]
        assert metrics.prefix_hits == 7 * 1200


async def test_steps_take_their_modelled_time_and_are_shared() -> None:
    async with scheduler(SchedulerLimits(), timing=TimingModel(decode_s=0.01)) as (
        made,
        _,
        metrics,
    ):
        began = time.monotonic()
        await finish(made, *(job(i, 5, tokens=31) for i in range(8)))
        assert 0.3 <= time.monotonic() - began < 1.5  # 2.4 one after the other
        assert metrics.itl.count == 8 * 30
        assert 0.008 < metrics.itl.sum / metrics.itl.count < 0.05


async def test_time_can_be_scaled() -> None:
    limits = SchedulerLimits(time_scale=0.1)
    async with scheduler(limits, timing=TimingModel(decode_s=0.1)) as (made, _, _metrics):
        began = time.monotonic()
        await finish(made, job(1, 5, tokens=11))
        assert 0.1 <= time.monotonic() - began < 0.5


async def test_an_aborted_job_gives_everything_back_at_any_time() -> None:
    limits = SchedulerLimits(max_num_seqs=2, max_num_batched_tokens=8)
    async with scheduler(limits, blocks=20, timing=TimingModel(decode_s=0.002)) as (
        made,
        pool,
        metrics,
    ):
        jobs = [job(i, 100, tokens=20) for i in range(6)]
        for each in jobs:
            made.submit(each, n=1)
        for each in jobs[:5]:
            await asyncio.sleep(0.01)
            made.abort(each)
            made.abort(each)
        rest = await finish(made, job(9, 30))
        assert len(rest[0]) == 30
        made.abort(jobs[5])
        made.update_gauges()
        assert pool.num_free == 20
        assert (metrics.running, metrics.waiting) == (0, 0)
        assert metrics.finished["abort"] >= 5
