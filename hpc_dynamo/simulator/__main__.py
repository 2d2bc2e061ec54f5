"""`python -m hpc_dynamo.simulator`: start, serve until a signal, exit."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import NoReturn

import uvloop

from hpc_dynamo.descriptors import raise_descriptor_limit
from hpc_dynamo.errors import EngineError, HpcDynamoError
from hpc_dynamo.http import HttpServer
from hpc_dynamo.printable import LineFormatter
from hpc_dynamo.simulator.adapters import parse_lora_modules
from hpc_dynamo.simulator.bad_answers import BadAnswer
from hpc_dynamo.simulator.blocks import BlockPool, KvMemory
from hpc_dynamo.simulator.data_parallel import DataParallelScheduler
from hpc_dynamo.simulator.engine_context import EngineContext
from hpc_dynamo.simulator.event_publishing import (
    event_publishing,
    local_publishers,
    publish_received,
)
from hpc_dynamo.simulator.handoffs import with_handoffs
from hpc_dynamo.simulator.injected_failures import InjectedFailures
from hpc_dynamo.simulator.metrics import SimulatorMetrics
from hpc_dynamo.simulator.model import SimulatedModel
from hpc_dynamo.simulator.nodes import FollowerNodes, follow, followers
from hpc_dynamo.simulator.options import KEY_VARIABLE, check, parser, set_nodes_from_slurm
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.server import HttpApi, malformed_request
from hpc_dynamo.simulator.sglang_api import SglangApi
from hpc_dynamo.simulator.sglang_requests import SglangRequests
from hpc_dynamo.simulator.step import SchedulerLimits
from hpc_dynamo.timing_model import load_timing

log = logging.getLogger("hpc_dynamo.simulator")

DRAIN_S = 0.5  # for nearly complete requests after a signal


def engine_context(args: argparse.Namespace) -> EngineContext:
    """Return an aggregated engine. Its scheduler does not run yet."""
    memory = KvMemory(args.num_blocks, args.block_size * args.kv_bytes_per_token)
    pool, metrics = BlockPool(args.num_blocks), SimulatorMetrics(args.num_blocks, args.block_size)
    limits = SchedulerLimits(
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        mean_output_tokens=args.mean_output_tokens,
        tokens_per_step=args.tokens_per_step,
        time_scale=args.time_scale,
        recompute=args.kv_load_failure_policy == "recompute",
        die_after_tokens=args.die_after_tokens,
        stall_after_tokens=args.stall_after_tokens,
    )
    model = SimulatedModel(f"{args.model}/{args.seed}", args.block_size, pool, memory)
    failures = InjectedFailures(
        after_requests=args.fail_after_requests,
        request_rate=args.fail_request_rate,
        seed=args.seed,
        text=args.fail_on_text.encode(),
        hang_after=args.hang_after_requests,
        bad_answer=BadAnswer(args.bad_answers) if args.bad_answers else None,
        bad_after=args.bad_after_requests,
    )
    scheduler, sglang = new_scheduler(args, limits, model, metrics), None
    if args.pd_protocol == "sglang":
        requests = SglangRequests(scheduler, args.disconnect_check_s)
        sglang = SglangApi(scheduler, requests, args.enable_pd_role_switch)
    return EngineContext(
        model=args.model,
        max_model_len=args.max_model_len,
        scheduler=scheduler,
        metrics=metrics,
        failures=failures,
        sglang_api=sglang,
        trtllm=args.pd_protocol == "trtllm",
        signing_key=args.internal_request_auth_key,
        adapters=parse_lora_modules(args.lora_modules),
        prefixed_adapters=args.pd_protocol == "sglang",
        report_cached=args.enable_prompt_tokens_details,
        report_request_id=args.enable_request_id_headers,
        pooling=args.runner == "pooling",
        sleep_mode=args.enable_sleep_mode,
    )


def new_scheduler(
    args: argparse.Namespace,
    limits: SchedulerLimits,
    model: SimulatedModel,
    metrics: SimulatorMetrics,
) -> Scheduler:
    """Return a scheduler; with data parallelism that of rank 0, which has the others."""
    timing, others = load_timing(args.timing), list[Scheduler]()
    for rank in range(1, args.data_parallel_size):
        memory = KvMemory(args.num_blocks, args.block_size * args.kv_bytes_per_token)
        identity, pool = f"{args.model}/{args.seed}", BlockPool(args.num_blocks)
        own = SimulatorMetrics(args.num_blocks, args.block_size, rank)
        metrics.others = (*metrics.others, own)
        same = SimulatedModel(identity, args.block_size, pool, memory)
        others.append(Scheduler(limits, timing, same, own))
    if others:
        return DataParallelScheduler(limits, timing, model, metrics, others)
    return Scheduler(limits, timing, model, metrics)


@contextlib.asynccontextmanager
async def running_engine(
    args: argparse.Namespace, port: int, key: str, nodes: FollowerNodes
) -> AsyncIterator[EngineContext]:
    """Run the engine of this worker. Its tasks end with the context."""
    engine = engine_context(args)
    loops = [engine.scheduler.run()]
    async with contextlib.AsyncExitStack() as stack:
        if args.role != "aggregated":
            added = with_handoffs(engine, args, port, key)
            engine, watches = await stack.enter_async_context(added)
            loops += watches
        loops += stack.enter_context(event_publishing(args, engine.scheduler, nodes))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = [tasks.create_task(each) for each in loops]
        yield engine
        for task in running:
            task.cancel()


async def serve(args: argparse.Namespace) -> None:
    """Listen and serve until SIGTERM or SIGINT. Raises EngineError if another node is lost."""
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
        with local_publishers(args) as (publishers, loops):
            publish = partial(publish_received, publishers)
            await first_of(stop.wait(), follow(args, key, publish), *loops)
        return
    api = HttpApi(key)
    server = HttpServer(api.handle, format_error=malformed_request)
    async with server, followers(args, key) as nodes:
        port = await server.listen(args.host, args.port, reuse_port=True)  # as vLLM does
        await first_of(stop.wait(), nodes.complete.wait(), nodes.lost.wait())
        async with running_engine(args, port, key, nodes) as engine:
            api.open(engine)
            log.info("%s of %s, listening on http://%s:%d", args.role, args.model, args.host, port)
            await (stop.wait() if args.outlive_nodes else first_of(stop.wait(), nodes.lost.wait()))
            if stop.is_set():
                log.info("stopping on a signal")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(server.drain(), DRAIN_S)
        if not stop.is_set():
            raise EngineError(nodes.lost_message)


async def first_of(*waits: Coroutine[None, None, object]) -> None:
    """Return when the first of them is done and cancel the others. Raises its exception."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for task in done:
        task.result()


def main() -> int:
    """Run the simulator and return its exit code."""
    raise_descriptor_limit()
    args = parser().parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=args.log_level.upper(), handlers=[handler])
    try:
        set_nodes_from_slurm(args)
        check(args)
        if args.fail_start:
            raise EngineError("failure injected by --fail-start")
        uvloop.run(serve(args))
    except (HpcDynamoError, OSError) as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_code if isinstance(e, HpcDynamoError) else 1
    return 0


def exit_now(code: int) -> NoReturn:
    """End the process without the exit handlers of C libraries.

    Those of the UCX in nixl-cu12 1.5.1 (libnl-route) crash with a segmentation fault.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        exit_now(main())
    except Exception:  # os._exit prints no traceback
        log.exception("unexpected error in the simulator")
        exit_now(70)  # EX_SOFTWARE of sysexits.h
