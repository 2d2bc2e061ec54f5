"""`python -m hpc_dynamo.simulator`: the life of the process."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from typing import NoReturn

import uvloop

from hpc_dynamo.errors import EngineError, HpcDynamoError
from hpc_dynamo.http import HttpClient, HttpServer
from hpc_dynamo.kv.agent import KvAgent
from hpc_dynamo.simulator.adapters import named
from hpc_dynamo.simulator.batch import Limits
from hpc_dynamo.simulator.blocks import BlockPool, KvMemory
from hpc_dynamo.simulator.events import Announcer, EventsConfig, Journal
from hpc_dynamo.simulator.kv_handoff import Endpoint, NixlHandover
from hpc_dynamo.simulator.metrics import Metrics
from hpc_dynamo.simulator.model import Model
from hpc_dynamo.simulator.nodes import following, leading
from hpc_dynamo.simulator.options import KEY_VARIABLE, check, in_world, parser
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.server import Endpoints, Failures, Service, refusal
from hpc_dynamo.simulator.sglang_bootstrap import Meeting, RoomHandover, Rooms, receiving
from hpc_dynamo.timing_model import load
from hpc_dynamo.wire import KvEventPublisher

log = logging.getLogger("hpc_dynamo.simulator")

SHUTDOWN_S = 0.5  # for answers that are nearly done when the process is told to end


@contextlib.asynccontextmanager
async def engine(args: argparse.Namespace, port: int, key: str) -> AsyncIterator[Service]:
    """The parts of one rank, put together; their tasks end with the context."""
    pool, metrics = BlockPool(args.num_blocks), Metrics(args.num_blocks, args.block_size)
    memory = KvMemory(args.num_blocks, args.block_size * args.kv_bytes_per_token)
    model = Model(f"{args.model}/{args.seed}", args.block_size, pool, memory)
    limits = Limits(
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        mean_output_tokens=args.mean_output_tokens,
        time_scale=args.time_scale,
        recompute=args.kv_load_failure_policy == "recompute",
        die_after_tokens=args.die_after_tokens,
        stall_after_tokens=args.stall_after_tokens,
    )
    scheduler = Scheduler(limits, load(args.timing), model, metrics)
    failures = Failures(
        args.fail_after_requests, args.fail_request_rate, args.seed, args.fail_on_text.encode()
    )
    service = Service(
        args.model,
        args.max_model_len,
        scheduler,
        metrics,
        None,
        failures,
        tell_cached=args.enable_prompt_tokens_details,
        tell_request_id=args.enable_request_id_headers,
        trtllm=args.dialect == "trtllm",
        adapters=named(args.lora_modules),
        prefixed=args.dialect == "sglang",
        naps=args.enable_sleep_mode,
        pooling=args.runner == "pooling",
    )
    async with contextlib.AsyncExitStack() as stack:
        loops = [scheduler.run()]
        if args.role != "aggregated":
            agent = KvAgent(f"{args.role}-{uuid.uuid4()}", memory.buffer, memory.block_bytes)
            client = await stack.enter_async_context(HttpClient.bearer(key))
            host = args.advertise_host or args.host
            endpoint = Endpoint(host, port, args.kv_lease_s, args.kv_transfer_timeout_s)
            damage = memory.damage if args.damage_kv else None
            parts = (agent, endpoint, client, metrics, scheduler.free, memory.settle, damage)
            handover = NixlHandover(*parts)
            if args.dialect == "sglang":
                rooms, wanted = Rooms(args.kv_lease_s), args.disaggregation_bootstrap_port
                handover = RoomHandover(*parts, rooms=rooms)
                met = await stack.enter_async_context(receiving(rooms, args.host, wanted, key))
                service = replace(service, meeting=Meeting(args.role, met))
            scheduler.handover, service = handover, replace(service, agent=agent)
            loops.append(handover.watch())
        loops += stack.enter_context(telling(args, model, scheduler))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = [tasks.create_task(each) for each in loops]
        yield service
        for task in running:
            task.cancel()


@contextlib.contextmanager
def telling(
    args: argparse.Namespace, model: Model, scheduler: Scheduler
) -> Iterator[list[Coroutine[None, None, None]]]:
    """Where KV events are to be published, does so, with the loop that this takes."""
    config = EventsConfig.parse(args.kv_events_config)
    if not config.on:
        yield []
        return
    publisher = KvEventPublisher(
        config.endpoint,
        config.replay_endpoint,
        topic=config.topic,
        buffer_steps=config.buffer_steps,
    )
    journal = Journal(args.block_size)
    model.keep(journal)
    scheduler.announcer = Announcer(journal, publisher, args.lose_kv_events, args.seed)
    with contextlib.closing(publisher):
        yield [publisher.serve_replays()]


async def serve(args: argparse.Namespace) -> None:
    """Listen, serve, and end on SIGTERM or SIGINT."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if args.start_delay_s:
        log.info("waiting %g s before serving", args.start_delay_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), args.start_delay_s)
            return
    key = os.environ.get(KEY_VARIABLE, "")
    if args.node_rank:
        await either(stop.wait(), following(args, key))
        return
    endpoints = Endpoints(key)
    async with (
        HttpServer(endpoints.handle, format_error=refusal) as server,
        leading(args, key) as nodes,
    ):
        port = await server.listen(args.host, args.port)
        await either(stop.wait(), nodes.complete.wait(), nodes.broken.wait())
        async with engine(args, port, key) as service:
            endpoints.open(service)
            log.info("%s of %s, listening on http://%s:%d", args.role, args.model, args.host, port)
            await (stop.wait() if args.outlive_nodes else either(stop.wait(), nodes.broken.wait()))
            if stop.is_set():
                log.info("told to end")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(server.drain(), SHUTDOWN_S)
        if not stop.is_set():
            raise EngineError(nodes.gone)


async def either(*waits: Coroutine[None, None, object]) -> None:
    """Until one of them is done; raises what that raises."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


def main() -> int:
    args = parser().parse_args()
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=args.log_level.upper(), format=form)
    try:
        check(in_world(args))
        if args.fail_start:
            raise EngineError("failing on purpose (--fail-start)")
        uvloop.run(serve(args))
    except (HpcDynamoError, OSError) as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_code if isinstance(e, HpcDynamoError) else 1
    return 0


def leave(code: int) -> NoReturn:
    """End the process without the C libraries' exit handlers.

    Those of the UCX that nixl-cu12 1.5.1 brings (libnl-route) end in a segmentation fault.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        leave(main())
    except Exception:
        log.exception("a defect of the simulator")
        leave(70)  # EX_SOFTWARE of sysexits.h
