"""One frontend process: `python -m hpc_dynamo.frontend ATTEMPT INDEX SOCKET FD`.

FD is the number of an inherited socket to listen on (head/listening.py). The process lives as long
as its link to the head. When that ends, streams under way get an error event.
"""

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import uvloop

from hpc_dynamo.config import Config
from hpc_dynamo.dispatch import Dispatcher
from hpc_dynamo.engines import engine, pd_protocol_of
from hpc_dynamo.frontend import errors
from hpc_dynamo.frontend.app import App
from hpc_dynamo.frontend.auth import ApiKeyAuth, RequestIdFilter, assign_request_id
from hpc_dynamo.frontend.cors import Cors
from hpc_dynamo.frontend.engine_passthrough import EnginePassthrough
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.forward import SuccessorForwarder
from hpc_dynamo.frontend.model_endpoints import ModelEndpoint, ModelEndpoints
from hpc_dynamo.frontend.request_translator import RequestTranslator
from hpc_dynamo.frontend.stats import FrontendReport, FrontendStats
from hpc_dynamo.frontend.tokenizer_check import tokenizer_matches_engine
from hpc_dynamo.http import Header, HttpClient, HttpLimits, HttpServer, pinned_tls_context
from hpc_dynamo.preprocess import Preprocessor, TokenIdsOnly, load_tokenizer, mismatched_tokenizer
from hpc_dynamo.router import RemoteRouter, RoutingRequest
from hpc_dynamo.run import Attempt

REPORT_INTERVAL_S = 1.0
DRAIN_TIMEOUT_S = 3.0  # for the last words of streams
MB = 1 << 20
LIMITS = {413: "serve.max_body_mb", 429: "serve.max_buffered_mb"}  # settings, by the status

log = logging.getLogger("hpc_dynamo.frontend")


async def serve(attempt: Attempt, index: int, link: Path, opened: socket.socket) -> None:
    """Until the head is gone or says so by SIGTERM."""
    config, stats = attempt.config(), FrontendStats()
    models = config.by_model
    loading = (asyncio.to_thread(load_tokenizer, own, os.environ) for own in models.values())
    prompts = await asyncio.gather(*loading)
    router = await RemoteRouter.connect(link)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, router.close)
    engines, jobs = HttpClient.bearer(attempt.engine_key()), _among_jobs(config)
    async with engines as client, jobs, asyncio.TaskGroup() as tasks:
        lanes = ModelEndpoints(
            _lane(model, own, known, stats, Dispatcher(router, pd_protocol_of(own), client, tasks))
            for (model, own), known in zip(models.items(), prompts, strict=True)
        )
        notices = dict[str, str]()
        gate, forwarder = (
            ApiKeyAuth(_key(attempt, config)),
            SuccessorForwarder(jobs, attempt.number, stats),
        )
        app = App(config, gate, router, lanes, forwarder, EnginePassthrough(client), stats)
        refuse = partial(_refuse, Cors(config.serve.allowed_origins))
        async with HttpServer(app, limits=_limits(config), format_error=refuse) as server:
            port = await server.listen_on(opened, tls=_tls(config))
            log.info("frontend %d (pid %d) listens on port %d", index, os.getpid(), port)
            background = [
                tasks.create_task(_heed(router, forwarder)),
                *(
                    tasks.create_task(_settle(models[lane.model], lane, router, notices))
                    for lane in lanes
                ),
                *(tasks.create_task(lane.translator.limit_tokenizer_memory()) for lane in lanes),
            ]
            await _tell(router, stats, server, lanes, notices)
            for task in background:
                task.cancel()
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await server.drain()


def _lane(
    model: str,
    config: Config,
    prompts: Preprocessor | TokenIdsOnly,
    stats: FrontendStats,
    to: Dispatcher,
) -> ModelEndpoint:
    """`stats` of the process are those of its only model."""
    own = FrontendStats() if model else stats
    return ModelEndpoint(model, RequestTranslator(config, prompts, own, model), to, own)


async def _settle(
    config: Config, lane: ModelEndpoint, router: RemoteRouter, notices: dict[str, str]
) -> None:
    """Find the tokenizer that will be used; put a notice into `notices` if there is none."""
    generation = lane.translator
    if isinstance(generation.tokenizer, TokenIdsOnly):
        await _ready(router, lane.model)
        # The engine may have downloaded the model meanwhile.
        generation.tokenizer = await asyncio.to_thread(load_tokenizer, config, os.environ)
    await _verify(config, lane)
    if lane.notice:
        notices[lane.model] = lane.notice
    prompts = generation.tokenizer
    log.info("%s", prompts if isinstance(prompts, TokenIdsOnly) else "the tokenizer is in use")


async def _ready(router: RemoteRouter, model: str) -> None:
    """Return once requests of a model are served."""
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S)
        if router.view.model(model).ready:
            return


async def _verify(config: Config, lane: ModelEndpoint) -> None:
    """Compare the computed token ids with those of the engine, if it offers them."""
    prompts, ask = (
        lane.translator.tokenizer,
        RoutingRequest(may_disaggregate=False, model=lane.model),
    )
    if not isinstance(prompts, Preprocessor) or not engine(config.engine.name).tokenizes:
        return
    log.info("tokenizer: %s %s", prompts.encoder_name, prompts.fallback_reason)
    if not await tokenizer_matches_engine(prompts, lane.dispatcher, config.served_name, ask):
        lane.translator.tokenizer = mismatched_tokenizer(config)


async def _heed(router: RemoteRouter, forwarder: SuccessorForwarder) -> None:
    """Look whether the job that takes over is still there. Until cancelled."""
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S)
        successor = router.view.successor
        forwarder.set_successor(successor.url if successor else "")


async def _tell(
    router: RemoteRouter,
    stats: FrontendStats,
    server: HttpServer,
    lanes: ModelEndpoints,
    notices: dict[str, str],
) -> None:
    """Report to the head every second, the first time at once: that is how it knows of us."""
    counted = FrontendReport({"": stats} | {lane.model: lane.stats for lane in lanes}, notices)
    while not router.closed.done():
        stats.connections = server.connections
        for lane in lanes:
            lane.stats.retried = lane.dispatcher.retries
        router.report_to_head(counted)
        await asyncio.wait([router.closed], timeout=REPORT_INTERVAL_S)


def _key(attempt: Attempt, config: Config) -> str:
    given = config.serve.api_key_file
    return Path(given).read_text().strip() if given else attempt.run.api_key()


def _among_jobs(config: Config) -> HttpClient:
    """For the endpoint of the job that takes over, which has our certificate."""
    return HttpClient(
        tls=pinned_tls_context(config.serve.tls_cert) if config.serve.tls_cert else None
    )


def _limits(config: Config) -> HttpLimits:
    body, held = config.serve.max_body_mb * MB, config.serve.max_buffered_mb * MB
    return HttpLimits(body_bytes=int(body), buffered_bytes=int(held))


def _tls(config: Config) -> ssl.SSLContext | None:
    if not config.serve.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.serve.tls_cert, config.serve.tls_key)
    return context


def _refuse(
    cors: Cors, status: int, message: str, got: Mapping[str, str]
) -> tuple[bytes, list[Header]]:
    """Return the answer to a malformed request, with an id and the setting of its limit."""
    own_id = (b"x-request-id", assign_request_id(got).encode())
    kind = (b"content-type", b"application/json")
    limit = f" ({LIMITS[status]})" if status in LIMITS else ""
    return errors.error_body(ApiError(status, message + limit)), [own_id, kind, *cors.headers(got)]


def main() -> int:
    path, index, link, fd = sys.argv[1:]
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    form = "%(asctime)s %(levelname)s %(request_id)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, handlers=[handler], format=form)
    uvloop.run(serve(Attempt(Path(path)), int(index), Path(link), socket.socket(fileno=int(fd))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
