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
from hpc_dynamo.engines import dialect, engine
from hpc_dynamo.frontend import errors
from hpc_dynamo.frontend.app import App
from hpc_dynamo.frontend.auth import Gate, WithRequestId, request_id
from hpc_dynamo.frontend.cors import Cors
from hpc_dynamo.frontend.engine_calls import EngineCalls
from hpc_dynamo.frontend.errors import Refused
from hpc_dynamo.frontend.forward import Forwarder
from hpc_dynamo.frontend.generation import Generation
from hpc_dynamo.frontend.model_routes import Lane, Lanes
from hpc_dynamo.frontend.stats import Counted, Stats
from hpc_dynamo.frontend.tokenizer_check import agrees
from hpc_dynamo.http import Client, Header, Limits, Server, pinned
from hpc_dynamo.preprocess import GivenIds, Preprocessor, different, load_prompts
from hpc_dynamo.router import Ask, RemoteRouter
from hpc_dynamo.run import Attempt

TELL_S = 1.0
FAREWELL_S = 3.0  # for the last words of streams
MB = 1 << 20
LIMITS = {413: "serve.max_body_mb", 429: "serve.buffer_mb"}  # settings, by the status

log = logging.getLogger("hpc_dynamo.frontend")


async def serve(attempt: Attempt, index: int, link: Path, opened: socket.socket) -> None:
    """Until the head is gone or says so by SIGTERM."""
    config, stats = attempt.config(), Stats()
    models = config.each
    loading = (asyncio.to_thread(load_prompts, own, os.environ) for own in models.values())
    prompts = await asyncio.gather(*loading)
    router = await RemoteRouter.connect(link)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, router.close)
    engines, jobs = Client.bearer(attempt.engine_key()), _among_jobs(config)
    async with engines as client, jobs, asyncio.TaskGroup() as tasks:
        lanes = Lanes(
            _lane(model, own, known, stats, Dispatcher(router, dialect(own), client, tasks))
            for (model, own), known in zip(models.items(), prompts, strict=True)
        )
        notices = dict[str, str]()
        gate, forwarder = Gate(_key(attempt, config)), Forwarder(jobs, attempt.number, stats)
        app = App(config, gate, router, lanes, forwarder, EngineCalls(client), stats)
        refuse = partial(_refuse, Cors(config.serve.allowed_origins))
        async with Server(app, limits=_limits(config), refuse=refuse) as server:
            port = await server.listen_on(opened, tls=_tls(config))
            log.info("frontend %d (pid %d) listens on port %d", index, os.getpid(), port)
            background = [
                tasks.create_task(_heed(router, forwarder)),
                *(
                    tasks.create_task(_settle(models[lane.model], lane, router, notices))
                    for lane in lanes
                ),
                *(tasks.create_task(lane.generation.keep_bounded()) for lane in lanes),
            ]
            await _tell(router, stats, server, lanes, notices)
            for task in background:
                task.cancel()
            async with asyncio.timeout(FAREWELL_S):
                await server.drain()


def _lane(
    model: str, config: Config, prompts: Preprocessor | GivenIds, stats: Stats, to: Dispatcher
) -> Lane:
    """`stats` of the process are those of its only model."""
    own = Stats() if model else stats
    return Lane(model, Generation(config, prompts, own, model), to, own)


async def _settle(
    config: Config, lane: Lane, router: RemoteRouter, notices: dict[str, str]
) -> None:
    """Find the tokenizer that will be used; put a notice into `notices` if there is none."""
    generation = lane.generation
    if isinstance(generation.prompts, GivenIds):
        await _ready(router, lane.model)
        # The engine may have downloaded the model meanwhile.
        generation.prompts = await asyncio.to_thread(load_prompts, config, os.environ)
    await _verify(config, lane)
    if lane.notice:
        notices[lane.model] = lane.notice
    prompts = generation.prompts
    log.info("%s", prompts if isinstance(prompts, GivenIds) else "the tokenizer is in use")


async def _ready(router: RemoteRouter, model: str) -> None:
    """Return once requests of a model are served."""
    while True:
        await asyncio.sleep(TELL_S)
        if router.view.of(model).ready:
            return


async def _verify(config: Config, lane: Lane) -> None:
    """Compare the computed token ids with those of the engine, if it offers them."""
    prompts, ask = lane.generation.prompts, Ask(split=False, model=lane.model)
    if not isinstance(prompts, Preprocessor) or not engine(config.engine.name).tokenizes:
        return
    log.info("tokenizer: %s %s", prompts.engine, prompts.slow_because)
    if not await agrees(prompts, lane.dispatcher, config.served_name, ask):
        lane.generation.prompts = different(config)


async def _heed(router: RemoteRouter, forwarder: Forwarder) -> None:
    """Look whether the job that takes over is still there. Until cancelled."""
    while True:
        await asyncio.sleep(TELL_S)
        successor = router.view.successor
        forwarder.heed(successor.url if successor else "")


async def _tell(
    router: RemoteRouter, stats: Stats, server: Server, lanes: Lanes, notices: dict[str, str]
) -> None:
    """Report to the head every second, the first time at once: that is how it knows of us."""
    counted = Counted({"": stats} | {lane.model: lane.stats for lane in lanes}, notices)
    while not router.closed.done():
        stats.connections = server.connections
        for lane in lanes:
            lane.stats.retried = lane.dispatcher.retried
        router.tell(counted)
        await asyncio.wait([router.closed], timeout=TELL_S)


def _key(attempt: Attempt, config: Config) -> str:
    given = config.serve.key_file
    return Path(given).read_text().strip() if given else attempt.run.api_key()


def _among_jobs(config: Config) -> Client:
    """For the endpoint of the job that takes over, which has our certificate."""
    return Client(tls=pinned(config.serve.tls_cert) if config.serve.tls_cert else None)


def _limits(config: Config) -> Limits:
    body, held = config.serve.max_body_mb * MB, config.serve.buffer_mb * MB
    return Limits(body_bytes=int(body), buffered_bytes=int(held))


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
    own_id = (b"x-request-id", request_id(got).encode())
    kind = (b"content-type", b"application/json")
    limit = f" ({LIMITS[status]})" if status in LIMITS else ""
    return errors.content(Refused(status, message + limit)), [own_id, kind, *cors.headers(got)]


def main() -> int:
    path, index, link, fd = sys.argv[1:]
    handler = logging.StreamHandler()
    handler.addFilter(WithRequestId())
    form = "%(asctime)s %(levelname)s %(request_id)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, handlers=[handler], format=form)
    uvloop.run(serve(Attempt(Path(path)), int(index), Path(link), socket.socket(fileno=int(fd))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
