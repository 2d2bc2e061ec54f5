"""Continuous batching in virtual time: limits change durations, never outputs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps

import pytest

from hpc_dynamo.simulation import clock
from hpc_dynamo.simulator.blocks import BlockPool, KvMemory
from hpc_dynamo.simulator.metrics import SimulatorMetrics
from hpc_dynamo.simulator.model import SimulatedModel
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sequence import SamplingParams, SequenceGroup
from hpc_dynamo.simulator.step import SchedulerLimits
from hpc_dynamo.timing_model import TimingModel

Test = Callable[..., Coroutine[None, None, None]]
WAIT_S = 60.0


def virtual_time(test: Test) -> Callable[..., None]:
    """Run a test in virtual time."""

    @wraps(test)
    def run(**arguments: object) -> None:
        clock.run(test(**arguments))

    return run


def now() -> float:
    return asyncio.get_running_loop().time()


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


def group(number: int, prompt_tokens: int, tokens: int = 30) -> SequenceGroup:
    prompt = [number * 1000 + i for i in range(prompt_tokens)]
    return SequenceGroup(str(number), prompt, SamplingParams(tokens, ignore_eos=True))


async def finish(made: Scheduler, *groups: SequenceGroup) -> list[list[int]]:
    news = asyncio.Event()
    for each in groups:
        each.on_update = news.set
        made.submit(each)
    async with asyncio.timeout(WAIT_S):
        while not all(each.done for each in groups):
            news.clear()
            await news.wait()
    return [each.choices[0].output_tokens for each in groups]


def work() -> list[SequenceGroup]:
    return [group(i, prompt_tokens=1 + 17 * i % 160) for i in range(30)]


@virtual_time
async def test_limits_do_not_change_outputs() -> None:
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


@virtual_time
async def test_cached_prefix_is_not_computed_again() -> None:
    timing = TimingModel(prefill_s_per_token=0.001)
    async with scheduler(SchedulerLimits(), timing=timing) as (made, _, metrics):
        took = list[float]()
        for _ in range(2):
            began = now()
            await finish(made, group(1, prompt_tokens=161, tokens=1))
            took.append(now() - began)
        assert took == pytest.approx([0.161, 0.001])
        assert (metrics.prefix_queries, metrics.prefix_hits) == (322, 160)


@virtual_time
async def test_partial_block_is_not_cached() -> None:
    limits = SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=5)
    async with scheduler(limits) as (made, _, metrics):
        one, two = await finish(made, group(1, 100), group(1, 100))
        assert one == two
        assert metrics.prefix_hits % 16 == 0


@pytest.mark.parametrize("budget", [512, 4096])
@virtual_time
async def test_prompts_of_one_step_share_prefix_of_first(
    budget: int,
) -> None:
    """Recorded with vLLM 0.32.0: eight prompts of 1,200 shared and 30 own tokens, sent at once.

    Seven report all full blocks of the shared part as cached, with either step budget.
    """
    prompts = [[*range(1200), *range(2000 + 30 * i, 2030 + 30 * i)] for i in range(8)]
    groups = [
        SequenceGroup(str(i), p, SamplingParams(4, ignore_eos=True)) for i, p in enumerate(prompts)
    ]
    limits = SchedulerLimits(max_num_batched_tokens=budget)
    async with scheduler(limits, blocks=200) as (made, _, metrics):
        await finish(made, *groups)
        assert [each.choices[0].cached_tokens for each in groups] == [0, *[1200] * 7]
        assert metrics.prefix_hits == 7 * 1200


@virtual_time
async def test_steps_take_modelled_time_for_all_sequences() -> None:
    timing = TimingModel(decode_s=0.01)
    async with scheduler(SchedulerLimits(), timing=timing) as (made, _, metrics):
        began = now()
        await finish(made, *(group(i, 5, tokens=31) for i in range(8)))
        assert now() - began == pytest.approx(0.3)
        assert metrics.itl.count == 8 * 30
        assert metrics.itl.sum / metrics.itl.count == pytest.approx(0.01)


@virtual_time
async def test_time_scale_multiplies_durations() -> None:
    limits = SchedulerLimits(time_scale=0.1)
    async with scheduler(limits, timing=TimingModel(decode_s=0.1)) as (made, _, _metrics):
        began = now()
        await finish(made, group(1, 5, tokens=11))
        assert now() - began == pytest.approx(0.1)


@virtual_time
async def test_abort_in_any_state_releases_blocks() -> None:
    limits = SchedulerLimits(max_num_seqs=2, max_num_batched_tokens=8)
    timing = TimingModel(decode_s=0.002)
    async with scheduler(limits, blocks=20, timing=timing) as (made, pool, metrics):
        groups = [group(i, 100, tokens=20) for i in range(6)]
        for each in groups:
            made.submit(each, n=1)
        for each in groups[:5]:
            await asyncio.sleep(0.01)
            made.abort(each)
            made.abort(each)
        rest = await finish(made, group(9, 30))
        assert len(rest[0]) == 30
        made.abort(groups[5])
        made.update_gauges()
        assert pool.num_free == 20
        assert (metrics.running, metrics.waiting) == (0, 0)
        assert metrics.finished["abort"] >= 5
