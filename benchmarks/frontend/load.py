"""Measures one load on a running target: wrk for whole responses, streams.py for streams."""

import asyncio
import json
import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.common.processes import cores_busy_s, cpu_s, memory_mib
from benchmarks.common.workload import Workload, workload
from benchmarks.frontend import streams
from benchmarks.frontend.targets import BackendKind, Target, TargetPids
from hpc_dynamo.errors import HpcDynamoError

SAMPLE_S = 0.5  # between two samples of the memory
WARM_S = 1.0
SLACK_S = 90.0  # time after its duration for a generator to end


@dataclass(frozen=True)
class Load:
    """Requests of `connections` clients, each of which waits for the response."""

    kind: str
    prompt_tokens: int
    connections: int
    answer_tokens: int
    backend_kind: BackendKind
    seconds: float

    @property
    def stream(self) -> bool:
        return self.backend_kind is not BackendKind.ANSWERS

    def __str__(self) -> str:
        return f"{self.kind}, {self.prompt_tokens:,} tokens, {self.connections} connections"

    def workload(self, tokenizer: Path) -> Workload:
        return workload(
            self.kind, self.prompt_tokens, tokenizer, answer=self.answer_tokens, stream=self.stream
        )


@dataclass(frozen=True)
class CpuCost:
    """Resources that a load used: CPU seconds by process, memory of the frontend."""

    frontend_s: float = 0.0
    backend_s: float = 0.0
    generator_s: float = 0.0
    other_programs_cores: float = 0.0  # cores that other programs used, which is noise
    peak_mib: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """Result of one load. Latencies are to the last byte; those of streams are in `streamed`."""

    requests: int
    errors: int
    tokens: int
    seconds: float
    cost: CpuCost
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    streamed: streams.StreamStats | None = None

    def __str__(self) -> str:
        rate = f"{self.requests / self.seconds:,.0f} requests/s"
        return f"{rate}, {self.tokens / self.seconds:,.0f} tokens/s, {self.errors} errors, " + (
            f"{self.cost.other_programs_cores:.2f} cores used by other programs"
        )


async def measure(
    system: Target, url: str, load: Load, tokenizer: Path, folder: Path
) -> Measurement:
    """Run `load` on a target that serves at `url`.

    Raises HpcDynamoError if the generator fails; errors of the target are counted.
    """
    pids = system.pids()
    before, peak, began = _cpu(pids), [0.0], time.monotonic()
    sampler = asyncio.create_task(_peak(pids.frontend, peak))
    try:
        send = _streams if load.stream else _wrk
        found = await send(url, system.key or "none", load, tokenizer, folder)
    finally:
        sampler.cancel()
    frontend, backend, ours, busy = (b - a for a, b in zip(before, _cpu(pids), strict=True))
    others = max(0.0, busy - frontend - backend - ours) / (time.monotonic() - began)
    return replace(found, cost=CpuCost(frontend, backend, found.cost.generator_s, others, peak[0]))


async def warm_up(system: Target, url: str, load: Load, tokenizer: Path, folder: Path) -> None:
    """Send the first turns of the load's conversations, then the load for a second."""
    headers = {"Authorization": f"Bearer {system.key}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session:
        for body in load.workload(tokenizer).openings():
            await (await session.post(f"{url}/v1/chat/completions", data=body)).read()
    await measure(system, url, replace(load, seconds=WARM_S), tokenizer, folder)


def _cpu(pids: TargetPids) -> tuple[float, float, float, float]:
    """Return CPU seconds of frontend, backend, this program with its generators, and in total."""
    generators = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = time.process_time() + generators.ru_utime + generators.ru_stime
    return cpu_s(pids.frontend), cpu_s(pids.backend), ours, cores_busy_s()


async def _peak(pids: Sequence[int], into: list[float]) -> None:
    while True:
        into[0] = max(into[0], memory_mib(pids))
        await asyncio.sleep(SAMPLE_S)


async def _wrk(url: str, key: str, load: Load, tokenizer: Path, folder: Path) -> Measurement:
    data = folder / f"{load.kind}-{load.prompt_tokens}-{load.answer_tokens}.lua"
    if not data.exists():
        data.write_text(load.workload(tokenizer).to_lua())
    argv = ["wrk", "-t1", f"-c{load.connections}", f"-d{load.seconds:.0f}", "--timeout", "30s"]
    argv += ["-s", str(Path(__file__).with_name("wrk.lua")), f"{url}/v1/chat/completions"]
    seed = str(time.time_ns() % 10**9)
    said = await _json([*argv, "--", str(data), key, seed], load.seconds)
    requests, errors = int(said["requests"]), int(said["errors"])
    p50_us, p99_us = (said[q] if requests else math.nan for q in ("p50_us", "p99_us"))
    return Measurement(
        requests,
        errors,
        (requests - errors) * load.answer_tokens,
        said["seconds"],
        CpuCost(generator_s=said["cpu_s"]),
        p50_us / 1e3,
        p99_us / 1e3,
    )


async def _streams(url: str, key: str, load: Load, tokenizer: Path, folder: Path) -> Measurement:
    argv = [sys.executable, "-m", streams.__name__, url, f"--key={key}", "--kind", load.kind]
    argv += ["--prompt-tokens", str(load.prompt_tokens), "--answer", str(load.answer_tokens)]
    argv += ["--streams", str(load.connections), "--seconds", str(load.seconds)]
    argv += ["--tokenizer", str(tokenizer)]
    said = streams.StreamStats(**await _json(argv, load.seconds))
    cost = CpuCost(generator_s=said.cpu_s)
    return Measurement(said.streams, said.errors, said.tokens, said.seconds, cost, streamed=said)


async def _json(argv: list[str], seconds: float) -> dict[str, Any]:
    """Run a generator; return the JSON of its last line."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(seconds + SLACK_S):
            out, _ = await process.communicate()
    except TimeoutError as e:
        raise HpcDynamoError(f"{argv[0]} did not end in time") from e
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    lines = out.decode(errors="replace").strip().splitlines()
    try:
        value: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError) as e:
        raise HpcDynamoError(f"{argv[0]} failed: {' '.join(lines[-5:])}") from e
    return value
