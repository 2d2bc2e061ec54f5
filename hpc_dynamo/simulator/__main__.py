"""`python -m hpc_dynamo.simulator`: options, the life of the process."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import NoReturn

import aiohttp
from aiohttp import web

from hpc_dynamo.errors import ConfigError, EngineError, HpcDynamoError
from hpc_dynamo.kv import KvAgent
from hpc_dynamo.simulator.blocks import DIGEST_BYTES, BlockPool, KvMemory
from hpc_dynamo.simulator.handover import Endpoint, NixlHandover
from hpc_dynamo.simulator.metrics import Metrics
from hpc_dynamo.simulator.model import Model
from hpc_dynamo.simulator.scheduler import Limits, Scheduler
from hpc_dynamo.simulator.server import Failures, Server, Service
from hpc_dynamo.simulator.timing import PROFILES, load

log = logging.getLogger("hpc_dynamo.simulator")

KEY_VARIABLE = "HPC_DYNAMO_ENGINE_KEY"
SHUTDOWN_S = 0.5  # for answers that are nearly done when the process is told to end

EPILOG = f"""\
examples:
  python -m hpc_dynamo.simulator --model demo --port 8000
  python -m hpc_dynamo.simulator --model demo --port 8001 --role prefill
  python -m hpc_dynamo.simulator --model demo --port 8002 --role decode --time-scale 0.1

Answers are random words, chosen by the bytes of the KV cache: the same prompt gives the same
answer on every rank of a model (same --model and --seed), also through prefill and decode.
With {KEY_VARIABLE} set, all but /health, /ready and /version want
`Authorization: Bearer <key>`. Ready when /health answers. SIGTERM and SIGINT end it.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m hpc_dynamo.simulator",
        description="An OpenAI server without a model: modelled time, real KV blocks and NIXL.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("--model", required=True, help="name to serve")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=0, help="0 takes a free one and logs it (%(default)s)")
    add("--advertise-host", help="address that decode ranks fetch from (default: --host)")
    add("--role", choices=("aggregated", "prefill", "decode"), default="aggregated")
    timing = f"{', '.join(PROFILES)}, or a JSON file with the fields of timing.Timing"
    add("--timing", default="h100-8b", help=f"{timing} (%(default)s)")
    add("--time-scale", type=float, default=1.0, help="multiplies all times (%(default)s)")
    add("--num-blocks", type=int, default=4096, help="KV blocks of the pool (%(default)s)")
    add("--block-size", type=int, default=16, help="tokens a block (%(default)s)")
    add("--kv-bytes-per-token", type=int, default=1024, help="bytes moved a token (%(default)s)")
    add("--max-num-seqs", type=int, default=64, help="answers at once (%(default)s)")
    add("--max-num-batched-tokens", type=int, default=2048, help="tokens a step (%(default)s)")
    add("--max-model-len", type=int, default=8192, help="prompt and answer (%(default)s)")
    add("--mean-output-tokens", type=int, default=128, help="of answers that end by themselves")
    add("--kv-load-failure-policy", choices=("fail", "recompute"), default="fail")
    add("--kv-lease-s", type=float, default=120.0, help="prefilled blocks wait (%(default)s)")
    add("--kv-transfer-timeout-s", type=float, default=30.0, help="for one pull (%(default)s)")
    add("--seed", type=int, default=0, help="the same on all ranks of a model (%(default)s)")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    fail = p.add_argument_group("failing on purpose")
    fail.add_argument("--fail-start", action="store_true", help="exit with 1 instead of serving")
    fail.add_argument("--fail-after-requests", type=int, metavar="N", help="SIGKILL at N+1")
    fail.add_argument("--fail-request-rate", type=float, default=0.0, metavar="P", help="500s")
    fail.add_argument("--damage-kv", action="store_true", help="hand over one wrong byte a prompt")
    fail.add_argument("--start-delay-s", type=float, default=0.0, metavar="S", help="as if loading")
    return p


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError for sizes that cannot work together."""
    if args.max_model_len > args.num_blocks * args.block_size:
        have = args.num_blocks * args.block_size
        what = f"max-model-len: {args.max_model_len} tokens do not fit into the KV cache of {have}"
        raise ConfigError(what, hint=f"--max-model-len {have}, or more --num-blocks")
    if args.max_num_batched_tokens < args.max_num_seqs:
        what = f"max-num-batched-tokens: {args.max_num_batched_tokens} are fewer than max-num-seqs"
        raise ConfigError(what, hint=f"at least {args.max_num_seqs}, one token an answer a step")
    if args.block_size * args.kv_bytes_per_token % DIGEST_BYTES:
        size = args.block_size * args.kv_bytes_per_token
        hint = "--kv-bytes-per-token 1024"
        raise ConfigError(
            f"kv-bytes-per-token: a block of {size} bytes is no multiple of {DIGEST_BYTES}",
            hint=hint,
        )


@contextlib.asynccontextmanager
async def engine(args: argparse.Namespace, port: int, key: str) -> AsyncIterator[Service]:
    """The parts of one rank, put together; their tasks end with the context."""
    pool, metrics = BlockPool(args.num_blocks), Metrics()
    memory = KvMemory(args.num_blocks, args.block_size * args.kv_bytes_per_token)
    model = Model(f"{args.model}/{args.seed}", args.block_size, pool, memory)
    limits = Limits(
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        mean_output_tokens=args.mean_output_tokens,
        time_scale=args.time_scale,
        recompute=args.kv_load_failure_policy == "recompute",
    )
    scheduler = Scheduler(limits, load(args.timing), model, metrics)
    failures = Failures(args.fail_after_requests, args.fail_request_rate, args.seed)
    service = Service(args.model, args.max_model_len, key, scheduler, metrics, None, failures)
    async with contextlib.AsyncExitStack() as stack:
        loops = [scheduler.run()]
        if args.role != "aggregated":
            agent = KvAgent(f"{args.role}-{uuid.uuid4()}", memory.buffer, memory.block_bytes)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers))
            host = args.advertise_host or args.host
            endpoint = Endpoint(host, port, args.kv_lease_s, args.kv_transfer_timeout_s)
            damage = memory.damage if args.damage_kv else None
            handover = NixlHandover(agent, endpoint, session, metrics, scheduler.free, damage)
            scheduler.handover, service = handover, replace(service, agent=agent)
            loops.append(handover.watch())
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = [tasks.create_task(each) for each in loops]
        yield service
        for task in running:
            task.cancel()


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet: nobody connects before there are answers."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


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
    listener = bind(args.host, args.port)
    host, port = listener.getsockname()[:2]
    async with engine(args, port, os.environ.get(KEY_VARIABLE, "")) as service:
        app = Server(service).app
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S
        )
        await runner.setup()
        await web.SockSite(runner, listener, backlog=1024).start()
        log.info("%s of %s, listening on http://%s:%d", args.role, args.model, host, port)
        await stop.wait()
        log.info("told to end")
        await runner.cleanup()


def main() -> int:
    args = parser().parse_args()
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=args.log_level.upper(), format=form)
    try:
        check(args)
        if args.fail_start:
            raise EngineError("failing on purpose (--fail-start)")
        asyncio.run(serve(args))
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
