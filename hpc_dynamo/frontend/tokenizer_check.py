"""Whether an engine tokenizes as we do; it may build its tokenizer differently."""

import asyncio
import logging

import msgspec

from hpc_dynamo.dispatch import BufferedResponse, Dispatcher, EngineRequest
from hpc_dynamo.engines import Body
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.preprocess import Preprocessor
from hpc_dynamo.router import NoWorker, Overloaded, RoutingRequest

RETRY_S = 5.0  # an engine may start for longer than a request may wait for it

PATH = "/tokenize"
IDS = msgspec.json.Decoder(list[int])

log = logging.getLogger(__name__)


async def tokenizer_matches_engine(
    prompts: Preprocessor,
    dispatcher: Dispatcher,
    name: str,
    ask: RoutingRequest,
    again_s: float = RETRY_S,
) -> bool:
    """False where an engine's ids differ from ours; an engine that cannot be asked agrees. While
    there is none, or none has room, it is asked again."""
    for probe, expected in prompts.probes():
        body: Body = {"model": name, **probe}
        work = EngineRequest(PATH, msgspec.json.encode(body), body, ask)
        try:
            answer = await _answer(dispatcher, work, again_s)
            ids = IDS.decode(answer.body.get("tokens", b"null"))
        except (RequestFailed, msgspec.DecodeError) as e:
            log.info("the engine's tokenizer could not be asked: %s", e)
            return True
        if ids != list(expected.ids):
            log.warning("the engine tokenizes %r differently", probe)
            return False
    return True


async def _answer(dispatcher: Dispatcher, work: EngineRequest, again_s: float) -> BufferedResponse:
    """Raises RequestFailed where an engine does."""
    while True:
        answer = BufferedResponse()
        try:
            await dispatcher.run(work, answer)
            return answer
        except (NoWorker, Overloaded) as e:
            log.debug("the engine's tokenizer cannot be asked yet: %s", e)
            await asyncio.sleep(again_s)
