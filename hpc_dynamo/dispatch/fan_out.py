"""Send one request as several with one sample each, and merge the responses.

Disaggregated SGLang workers cannot return several samples; see `execution`.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgspec

from hpc_dynamo.dispatch.execution import is_off
from hpc_dynamo.dispatch.merged_response import BufferedSample, MergedResponse, MergedStream
from hpc_dynamo.dispatch.worker_client import EngineRequest, ResponseSink
from hpc_dynamo.engines import field_value
from hpc_dynamo.errors import RequestFailed

MAX_SAMPLES = 128  # OpenAI's limit for `n`
MAX_COPIED_BYTES = 16 << 20  # bodies for all samples of a request

Run = Callable[[EngineRequest, ResponseSink], Coroutine[Any, Any, None]]


async def fan_out(run: Run, request: EngineRequest, sink: ResponseSink) -> None:
    """Execute each sample of a request with `run`; send the merged response to `sink`.

    The error of one sample is raised for the whole request, and the others are cancelled.
    """
    if request.samples > MAX_SAMPLES:
        what = f"n={request.samples}: at most {MAX_SAMPLES} samples per request"
        raise RequestFailed(f"{what} when prefill and decode are disaggregated", status=400)
    if request.samples * len(request.content) > MAX_COPIED_BYTES:
        size = f"{request.samples} samples of a request with {len(request.content):,} bytes"
        what = f"{size}: at most {MAX_COPIED_BYTES >> 20} MiB together"
        raise RequestFailed(f"{what} when prefill and decode are disaggregated", status=400)
    singles = [request_for_sample(request, sample) for sample in range(request.samples)]
    if not is_off(request.body, "stream"):
        stream = MergedStream(request.samples)
        await _gather(stream.deliver(sink), *map(run, singles, stream.sample_streams))
    else:
        parts = [BufferedSample() for _ in singles]
        await _gather(*map(run, singles, parts))
        await MergedResponse(parts).deliver(sink)


def request_for_sample(request: EngineRequest, sample: int) -> EngineRequest:
    """Return the request for one sample.

    With a `seed`, sample j gets seed + j, as in vLLM (v1/engine/parallel_sampling.py). So the
    samples differ, and a repeated request returns the same samples.
    """
    body = {name: value for name, value in request.body.items() if name not in ("n", "best_of")}
    seed = field_value(body.get("seed"))
    if isinstance(seed, int):
        body["seed"] = seed + sample
    if sample:
        body.pop("rid", None)  # SGLang requires a unique id per request
    return replace(request, body=body, content=msgspec.json.encode(body), samples=1)


async def _gather(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Await all concurrently; raise the first exception and cancel the rest."""
    try:
        async with asyncio.TaskGroup() as group:
            for coroutine in coroutines:
                group.create_task(coroutine)
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
