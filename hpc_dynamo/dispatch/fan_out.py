"""Send one request as several with one answer each, and merge the answers.

Two SGLang workers that share a request cannot give several answers to it; see `execution`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec

from hpc_dynamo.dispatch.execution import is_off
from hpc_dynamo.dispatch.merged_response import BufferedSample, MergedResponse, MergedStream
from hpc_dynamo.dispatch.worker_client import EngineRequest, ResponseSink
from hpc_dynamo.engines import field_value
from hpc_dynamo.errors import RequestFailed

MAX_SAMPLES = 128  # OpenAI's limit for `n`

Run = Callable[[EngineRequest, ResponseSink], Awaitable[None]]


async def fan_out(run: Run, work: EngineRequest, taker: ResponseSink) -> None:
    """Execute each sample of `work` with `run` and give `taker` the merged answer.

    The error of one sample is raised for the whole request, and the others are cancelled.
    """
    if work.samples > MAX_SAMPLES:
        what = f"n={work.samples}: at most {MAX_SAMPLES} answers to one request"
        raise RequestFailed(f"{what} when prefill and decode are disaggregated", status=400)
    singles = [request_for_sample(work, sample) for sample in range(work.samples)]
    if not is_off(work.body, "stream"):
        stream = MergedStream(work.samples)
        await _together(stream.deliver(taker), *map(run, singles, stream.sample_streams))
    else:
        parts = [BufferedSample() for _ in singles]
        await _together(*map(run, singles, parts))
        await MergedResponse(parts).deliver(taker)


def request_for_sample(work: EngineRequest, sample: int) -> EngineRequest:
    """Return the request for one of the samples.

    With a `seed` sample j gets seed + j, as in vLLM (v1/engine/parallel_sampling.py), so that the
    samples differ and a repeated request gives the same samples.
    """
    body = {name: value for name, value in work.body.items() if name not in ("n", "best_of")}
    seed = field_value(body.get("seed"))
    if isinstance(seed, int):
        body["seed"] = seed + sample
    if sample:
        body.pop("rid", None)  # SGLang's name for a request, which must be unique
    return replace(work, body=body, content=msgspec.json.encode(body), samples=1)


async def _together(*work: Awaitable[None]) -> None:
    """Await all; raise the first exception that one of them raises."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(_awaited(each))
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _awaited(work: Awaitable[None]) -> None:
    await work
