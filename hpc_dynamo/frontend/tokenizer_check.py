"""Compares computed token ids with an engine's, which may build its tokenizer differently."""

import asyncio
import logging

import msgspec

from hpc_dynamo.dispatch import BufferedResponse, Dispatcher, EngineRequest
from hpc_dynamo.engines import Body
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.preprocess import Preprocessor
from hpc_dynamo.router import NoWorker, Overloaded, RoutingRequest

RETRY_S = 5.0  # delay after a request for which no worker was available

PATH = "/tokenize"
IDS = msgspec.json.Decoder(list[int])

log = logging.getLogger(__name__)


async def tokenizer_matches_engine(
    tokenizer: Preprocessor, dispatcher: Dispatcher, model: str, routing: RoutingRequest,
    retry_s: float = RETRY_S,
) -> bool:  # fmt: skip
    """Return False if an engine's token ids differ; True if they agree or cannot be queried.

    Waits for a worker, since an engine may start for longer than a request may wait for it.
    """
    for probe, expected in await tokenizer.probes():
        body: Body = {"model": model, **probe}
        request = EngineRequest(PATH, msgspec.json.encode(body), body, routing)
        try:
            response = await _send(dispatcher, request, retry_s)
            ids = IDS.decode(response.body.get("tokens", b"null"))
        except (RequestFailed, msgspec.DecodeError) as e:
            log.info("the engine's tokenizer cannot be queried: %s", e)
            return True
        if ids != list(expected.ids):
            log.warning("the engine tokenizes %r differently", probe)
            return False
    return True


async def _send(dispatcher: Dispatcher, request: EngineRequest, retry_s: float) -> BufferedResponse:
    """Raises RequestFailed if the engine rejects the request."""
    while True:
        response = BufferedResponse()
        try:
            await dispatcher.run(request, response)
            return response
        except (NoWorker, Overloaded) as e:
            log.debug("the engine's tokenizer cannot be queried yet: %s", e)
            await asyncio.sleep(retry_s)
