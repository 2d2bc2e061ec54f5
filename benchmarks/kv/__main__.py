"""Compare KV transfers by NIXL with a memory copy and a TCP socket, in one run.

    python -m benchmarks.kv                   a minute: host memory, all models
    python -m benchmarks.kv --gpu             GPU memory (torch, nixl-cu13)
    UCX_TLS=tcp python -m benchmarks.kv       UCX over loopback without shared memory

The blocks of a prompt are pulled from another process with `kv.agent`: contiguous (neighbours in
the pool, in order) and scattered (every second block, shuffled). A block has 16 tokens of 2 (K and
V) x layers x KV heads x head size x 2 bytes, from the models' config.json. Engines without
cross-layer blocks register one descriptor per layer and block. memcpy copies the same number of
bytes within this process, TCP sends them over one loopback socket. The measurements alternate, so
that all see the same machine. For GPU memory the limit is a device-to-device copy.
"""

import argparse
import asyncio
import atexit
import importlib
import importlib.metadata
import mmap
import os
import platform
import random
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common.machine import cpu_model
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.kv.agent import KvAgent
from hpc_dynamo.kv.memory import allocate_gpu_pool
from hpc_dynamo.kv.nixl import WHEELS

BLOCK_TOKENS, TRANSFER_BYTES = 16, 64 << 20  # maximum bytes per pull
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class ModelBlocks:
    """KV blocks of a model, in bfloat16."""

    name: str
    layers: int
    kv_heads: int
    head: int = 128

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head * 2

    def sizes(self) -> dict[str, int]:
        whole = self.token_bytes * BLOCK_TOKENS
        return {"whole block": whole, "a layer's": whole // self.layers}


# Layers and KV heads from config.json; 70B also as one of 8 tensor-parallel ranks.
MODELS = (
    ModelBlocks("Llama-3.1-8B", 32, 8),
    ModelBlocks("Llama-3.1-70B", 80, 8),
    ModelBlocks("Llama-3.1-70B, TP 8", 80, 1),
)


@dataclass
class Case:
    """Measurements for one block size: seconds of each repeat by method."""

    model: str
    part: str
    block_bytes: int
    seconds: dict[str, list[float]]

    @property
    def count(self) -> int:
        return max(4, TRANSFER_BYTES // self.block_bytes)

    @property
    def size_bytes(self) -> int:
        return self.count * self.block_bytes


def main() -> int:
    args = _parser().parse_args()
    if args.serve:
        asyncio.run(_serve(args.serve, args.gpu))
    models = MODELS[:1] if args.quick else MODELS
    cases = [Case(m.name, part, size, {}) for m in models for part, size in m.sizes().items()]
    try:
        for case in cases:
            asyncio.run(_measure(case, args.repeats, args.gpu))
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    Console(width=170).print(_table(cases, args))
    return 0


async def _serve(block_bytes: int, gpu: bool) -> None:
    """Serve blocks in the other process, until the parent's pipe is closed."""
    case = Case("", "", block_bytes, {})
    agent = KvAgent(f"bench-{os.getpid()}", _pool(2 * case.size_bytes, gpu), block_bytes)
    sys.stdout.write(f"\nmetadata {agent.metadata().hex()}\n")
    sys.stdout.flush()
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    while not ended.done():
        await agent.get_notifications()
        await asyncio.sleep(0)
    os._exit(0)  # UCX may crash in its exit handlers


async def _measure(case: Case, repeats: int, gpu: bool) -> None:
    pool = _pool(2 * case.size_bytes, gpu)
    agent = KvAgent(f"local {case.model} {case.part}", pool, case.block_bytes, first_wait_s=0)
    argv = ["-m", "benchmarks.kv", "--serve", str(case.block_bytes), *(["--gpu"] if gpu else [])]
    pipe = asyncio.subprocess.PIPE
    other = await asyncio.create_subprocess_exec(
        sys.executable, *argv, stdin=pipe, stdout=pipe, limit=1 << 22
    )
    try:
        peer = await agent.add_peer(await _metadata(other))
        await _turns(case, repeats, agent, peer, pool)
    finally:
        if other.stdin:
            other.stdin.close()
        await other.wait()
        await agent.close()


async def _metadata(other: "asyncio.subprocess.Process") -> bytes:
    assert other.stdout
    async with asyncio.timeout(TIMEOUT_S):
        async for line in other.stdout:
            if line.startswith(b"metadata "):
                return bytes.fromhex(line.decode().split()[1])
    raise HpcDynamoError("the other process ended before it served")


async def _turns(case: Case, repeats: int, agent: KvAgent, peer: str, pool: Any) -> None:
    order = list(range(case.count))
    scattered = [2 * i for i in order]
    random.Random(7).shuffle(scattered)
    copy = _device_copy(pool, case.size_bytes) if hasattr(pool, "data_ptr") else _memcpy(case)
    for turn in range(repeats + 1):  # the first repeat connects and is not counted
        for name, blocks in (("contiguous", order), ("scattered", scattered)):
            done = await agent.pull(peer, blocks, blocks, notification=b".", timeout_s=TIMEOUT_S)
            _note(case, name, done.seconds, turn)
        for name, move in (("memcpy", copy), ("tcp", lambda: _tcp(case.size_bytes))):
            _note(case, name, await asyncio.to_thread(move), turn)


def _note(case: Case, name: str, seconds: float, turn: int) -> None:
    if turn:
        case.seconds.setdefault(name, []).append(seconds)


def _pool(size: int, gpu: bool) -> Any:
    if gpu:
        if (pool := allocate_gpu_pool(size)) is None:
            raise HpcDynamoError("--gpu: torch sees no GPU here", hint="leave --gpu out")
        return pool
    host = mmap.mmap(-1, size)
    for at in range(0, size, mmap.PAGESIZE):  # touch the pages
        host[at] = 1
    return host


def _memcpy(case: Case) -> Callable[[], float]:
    """Return a function that copies between two touched buffers and returns the seconds."""
    source, target = (memoryview(_pool(case.size_bytes, False)) for _ in range(2))

    def copy() -> float:
        began = time.perf_counter()
        target[:] = source
        return time.perf_counter() - began

    return copy


def _device_copy(pool: Any, size: int) -> Callable[[], float]:
    torch = importlib.import_module("torch")

    def copy() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        pool[size : 2 * size].copy_(pool[:size])
        torch.cuda.synchronize()
        return time.perf_counter() - began

    return copy


def _tcp(size: int) -> float:
    """Send bytes through a socket, with a thread that sends; return the seconds."""
    source, target = (memoryview(_pool(size, False)) for _ in range(2))
    with socket.create_server(("127.0.0.1", 0)) as server:
        out = socket.create_connection(server.getsockname())
        into, _ = server.accept()
    with out, into:
        out.settimeout(TIMEOUT_S)
        into.settimeout(TIMEOUT_S)
        sender = threading.Thread(target=out.sendall, args=(source,))
        began, got = time.perf_counter(), 0
        sender.start()
        while got < size and (more := into.recv_into(target[got:])):
            got += more
        sender.join()
        return time.perf_counter() - began


def _table(cases: list[Case], args: argparse.Namespace) -> Table:
    where = f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, Python "
    where += f"{platform.python_version()}, {_nixl()}, UCX_TLS={os.environ.get('UCX_TLS', 'auto')}"
    where += f", load average {os.getloadavg()[0]:.1f}"
    memory = "GPU memory, copy device to device" if args.gpu else "host memory"
    figures = f"GB/s: median (minimum to maximum) of {args.repeats}; best in % of the best copy"
    title = f"{memory}; {where}\n{figures}"
    table = Table(title=title)
    for name in ("model", "descriptor KiB", "count", "contiguous", "scattered", "memcpy", "TCP"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for case in cases:
        size = f"{case.block_bytes / 1024:,.0f}"
        cells = (_cell(case, name) for name in ("contiguous", "scattered", "memcpy", "tcp"))
        table.add_row(f"{case.model}, {case.part}", size, str(case.count), *cells)
    return table


def _cell(case: Case, name: str) -> str:
    rates = [case.size_bytes / s / 1e9 for s in case.seconds[name]]
    middle = statistics.median(rates)
    share = min(case.seconds["memcpy"]) / min(case.seconds[name])
    shown = f"{middle:.2f} ({min(rates):.2f} to {max(rates):.2f})"
    return shown if name == "memcpy" else f"{shown}; {share:.0%}"


def _nixl() -> str:
    for wheel in WHEELS:
        try:
            return f"{wheel} {importlib.metadata.version(wheel)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "no NIXL"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="only the first model")
    parser.add_argument("--gpu", action="store_true", help="pools in GPU memory")
    parser.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    atexit.register(os._exit, 1)  # UCX may crash in its exit handlers; runs after a traceback
    code = main()
    sys.stdout.flush()
    os._exit(code)
