"""One frontend process: `python -m hpc_dynamo.frontend ATTEMPT INDEX SOCKET FD`.

ATTEMPT is the folder of the attempt, SOCKET the head's unix socket. FD is an inherited socket to
listen on (head/workloads/endpoint_socket.py). The process ends with its connection to the head;
open streams then get an error event.
"""

import asyncio
import gc
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

from hpc_dynamo.config import Config, Serve
from hpc_dynamo.defects import COUNTS
from hpc_dynamo.descriptors import raise_descriptor_limit
from hpc_dynamo.dispatch import Dispatcher, StreamMigrator
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
from hpc_dynamo.frontend.stats import REPORT_INTERVAL_S, FrontendReport, FrontendStats
from hpc_dynamo.frontend.tokenizer_check import tokenizer_matches_engine
from hpc_dynamo.http import Header, HttpClient, HttpLimits, HttpServer, pinned_tls_context
from hpc_dynamo.preprocess import (
    Preprocessor,
    TokenIdsOnly,
    load_tokenizer,
    mismatched_tokenizer,
)
from hpc_dynamo.printable import LOG_FORMAT, LineFormatter
from hpc_dynamo.regular_file import read_key
from hpc_dynamo.router import RemoteRouter, RoutingRequest
from hpc_dynamo.run import Attempt
from hpc_dynamo.run.logs import RateLimit

DRAIN_TIMEOUT_S = 3.0  # time for the last events of streams
MB = 1 << 20
LIMIT_SETTINGS = {413: "serve.max_body_mb", 429: "serve.max_buffered_mb"}  # by status

log = logging.getLogger("hpc_dynamo.frontend")


async def serve(attempt: Attempt, index: int, link: Path, listening: socket.socket) -> None:
    """Serve until the head ends, or sends SIGTERM."""
    config, stats = attempt.config(), FrontendStats()
    configs = config.by_model
    loading = (asyncio.to_thread(load_tokenizer, own, os.environ) for own in configs.values())
    tokenizers = await asyncio.gather(*loading)
    router = await RemoteRouter.connect(link)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, router.close)
    engine_client, successor_client = HttpClient.bearer(attempt.engine_key()), _client(config.serve)
    async with engine_client as client, successor_client, asyncio.TaskGroup() as tasks:
        models = ModelEndpoints(
            _model_endpoint(
                model,
                own,
                tokenizer,
                stats,
                Dispatcher(router, pd_protocol_of(own.engine), client, tasks),
            )
            for (model, own), tokenizer in zip(configs.items(), tokenizers, strict=True)
        )
        notices = dict[str, str]()
        forwarder = SuccessorForwarder(successor_client, attempt.number, stats)
        auth, passthrough = ApiKeyAuth(_api_key(attempt, config.serve)), EnginePassthrough(client)
        app = App(config.serve, auth, router, models, forwarder, passthrough, stats)
        format_error = partial(_format_error, Cors(config.serve.allowed_origins))
        async with HttpServer(
            app, limits=_limits(config.serve), format_error=format_error, has_key=auth.has_key
        ) as server:
            gc.freeze()  # later collections skip what stays anyway, and take a few milliseconds
            port = await server.listen_on(listening, tls=_tls(config.serve))
            log.info("frontend %d (pid %d) listens on port %d", index, os.getpid(), port)
            background = [tasks.create_task(_follow_successor(router, forwarder))]
            for model in models:
                selecting = _select_tokenizer(configs[model.model], model, router, notices)
                background.append(tasks.create_task(selecting))
                limiting = model.translator.builder.limit_tokenizer_memory()
                background.append(tasks.create_task(limiting))
            await _report(router, stats, server, models, FrontendReport({}, index, notices))
            for task in background:
                task.cancel()
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await server.drain()


def _model_endpoint(
    model: str, config: Config, tokenizer: Preprocessor | TokenIdsOnly, stats: FrontendStats,
    dispatcher: Dispatcher,
) -> ModelEndpoint:  # fmt: skip
    """The only model of a run shares the `stats` of the process."""
    own = FrontendStats() if model else stats
    translator = RequestTranslator(config, tokenizer, own, model)
    migrator = StreamMigrator(
        dispatcher,
        translator.builder,
        limit=config.serve.migrations,
        ask_engine=engine(config.engine.name).own_tokenizer,
    )
    return ModelEndpoint(model, translator, dispatcher, migrator, own)


async def _select_tokenizer(
    config: Config, model: ModelEndpoint, router: RemoteRouter, notices: dict[str, str]
) -> None:
    """Load and check the tokenizer; put a notice into `notices` if there is none."""
    builder = model.translator.builder
    if isinstance(builder.tokenizer, TokenIdsOnly):
        await _wait_until_ready(router, model.model)
        # The engine may have downloaded the model by now.
        builder.tokenizer = await asyncio.to_thread(load_tokenizer, config, os.environ)
    await _check_tokenizer(config, model)
    if notice := model.translator.notice:
        notices[model.model] = notice
    tokenizer = builder.tokenizer
    without = isinstance(tokenizer, TokenIdsOnly)
    log.info("%s", tokenizer if without else "the tokenizer is in use")


async def _wait_until_ready(router: RemoteRouter, model: str) -> None:
    """Return once requests of a model are served."""
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S)
        if router.view.model(model).ready:
            return


async def _check_tokenizer(config: Config, model: ModelEndpoint) -> None:
    """Replace the tokenizer if its token ids differ from those of the engine."""
    tokenizer = model.translator.builder.tokenizer
    if not isinstance(tokenizer, Preprocessor) or not engine(config.engine.name).tokenizes:
        return
    log.info("tokenizer: %s %s", tokenizer.encoder_name, tokenizer.fallback_reason)
    routing = RoutingRequest(may_disaggregate=False, model=model.model)
    name = config.served_name
    if not await tokenizer_matches_engine(tokenizer, model.dispatcher, name, routing):
        model.translator.builder.tokenizer = mismatched_tokenizer(config.model)


async def _follow_successor(router: RemoteRouter, forwarder: SuccessorForwarder) -> None:
    """Keep the forwarder informed of the next job's URL. Runs until cancelled."""
    while True:
        await asyncio.sleep(REPORT_INTERVAL_S)
        successor = router.view.successor
        forwarder.set_successor(successor.url if successor else "")


async def _report(
    router: RemoteRouter, stats: FrontendStats, server: HttpServer, models: ModelEndpoints,
    report: FrontendReport,
) -> None:  # fmt: skip
    """Report to the head, at once and then every second. The first report announces the process."""
    report.by_model = {"": stats} | {model.model: model.stats for model in models}
    while not router.closed.done():
        stats.connections, stats.rejections = server.connections, dict(server.rejections)
        stats.tasks, stats.defects = len(asyncio.all_tasks()), COUNTS.total()
        for model in models:
            model.stats.retried = model.dispatcher.retries
            model.stats.migrations = dict(model.migrator.outcomes)
        router.report_to_head(report)
        await asyncio.wait([router.closed], timeout=REPORT_INTERVAL_S)


def _api_key(attempt: Attempt, serve_config: Serve) -> str:
    file = serve_config.api_key_file
    return read_key(file) if file else attempt.run.api_key()


def _client(serve_config: Serve) -> HttpClient:
    """Return a client for the endpoint of the next job, which has the same certificate."""
    certificate = serve_config.tls_cert
    return HttpClient(tls=pinned_tls_context(certificate) if certificate else None)


def _limits(serve_config: Serve) -> HttpLimits:
    body, buffered = serve_config.max_body_mb * MB, serve_config.max_buffered_mb * MB
    return HttpLimits(body_bytes=int(body), buffered_bytes=int(buffered))


def _tls(serve_config: Serve) -> ssl.SSLContext | None:
    if not serve_config.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(serve_config.tls_cert, serve_config.tls_key)
    return context


def _format_error(
    cors: Cors, status: int, message: str, headers: Mapping[str, str]
) -> tuple[bytes, list[Header]]:
    """Return the response to a malformed request, with an id and the setting of its limit."""
    request_id = (b"x-request-id", assign_request_id(headers).encode())
    content_type = (b"content-type", b"application/json")
    limit = f" ({LIMIT_SETTINGS[status]})" if status in LIMIT_SETTINGS else ""
    body = errors.error_body(ApiError(status, message + limit))
    return body, [request_id, content_type, *cors.headers(headers)]


def main() -> int:
    """Run the process with the arguments of the command line."""
    raise_descriptor_limit()
    path, index, link, fd = sys.argv[1:]
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    handler.addFilter(RateLimit())
    handler.setFormatter(LineFormatter(LOG_FORMAT.replace("%(name)s", "%(request_id)s %(name)s")))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    uvloop.run(serve(Attempt(Path(path)), int(index), Path(link), socket.socket(fileno=int(fd))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
