"""Measure `engine.kv_host_cache_gb` on vLLM's CPU build, with and without it in one run.

    python -m benchmarks.host_cache                     one aggregated worker, about five minutes
    python -m benchmarks.host_cache --disaggregated     a prefill and a decode worker

Both endpoints run at the same time, and only one has a request. They get the same prompts in the
same order, in alternating rounds. The first round over all documents is not measured. On the CPU
the "device" cache and the host cache are the same memory: the gain is that of a larger cache with
the cost of vLLM's transfers, not that of PCIe. Answers of both must be equal.
"""

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.common.machine import cpu_model
from benchmarks.common.serving import ServingJob, serving
from benchmarks.common.workload import MODEL
from benchmarks.host_cache.workload import Documents, Sample, ask
from hpc_dynamo.demo.engine_environment import DemoEngine
from hpc_dynamo.demo.provision import VLLM, provision

BLOCK_TOKENS = 128  # vLLM on CPUs
READY_S = 600.0
# Starts one process less.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
HOST_CACHES_GB = (0.0, 1.0)

Rounds = dict[float, list[list[Sample]]]
"""Samples of all rounds by size of the host cache."""


def overrides(engine: DemoEngine, args: argparse.Namespace, size_gb: float) -> list[str]:
    """Return the settings of one endpoint."""
    kind = "disaggregated" if args.disaggregated else "aggregated"
    return [
        "engine=vllm-cpu",
        f"topology={kind}",
        f"model.name={MODEL}",
        f"engine.python={engine.python}",
        f"engine.args.num-gpu-blocks-override={args.device_blocks}",
        "engine.args.max-model-len=1024",
        "engine.max_num_seqs=2",
        f"engine.args.distributed-executor-backend={ONE_PROCESS}",
        "serve.queue_timeout_s=600",
        f"engine.kv_host_cache_gb={size_gb}",
        *args.override,
    ]


async def compare(engine: DemoEngine, args: argparse.Namespace, folder: Path) -> Rounds:
    """Send the same rounds to both endpoints, in alternating order."""
    found: Rounds = {size: [] for size in HOST_CACHES_GB}
    documents = Documents(engine.model / "tokenizer.json", args.documents, args.tokens)
    async with AsyncExitStack() as stack:
        starts = [_start(stack, engine, args, folder, size) for size in HOST_CACHES_GB]
        jobs = dict(zip(HOST_CACHES_GB, await asyncio.gather(*starts), strict=True))
        prompts = documents.all()
        for job in jobs.values():
            await _round(job, prompts)
        for number in range(args.rounds):
            prompts = documents.round(args.requests)
            for size in HOST_CACHES_GB if number % 2 else reversed(HOST_CACHES_GB):
                found[size].append(await _round(jobs[size], prompts))
                print(f"{size:g} GB, round {number}: {_row([found[size][-1]])}", file=sys.stderr)
    return found


async def _start(
    stack: AsyncExitStack, engine: DemoEngine, args: argparse.Namespace, folder: Path, size: float
) -> ServingJob:
    name, words = f"cache-{size:g}", overrides(engine, args, size)
    started = serving(folder / name, name, engine.model, words, READY_S)
    return await stack.enter_async_context(started)


async def _round(job: ServingJob, prompts: Sequence[Sequence[int]]) -> list[Sample]:
    key = job.run.api_key()
    return [await asyncio.to_thread(ask, job.url, key, prompt) for prompt in prompts]


def _row(rounds: Sequence[Sequence[Sample]]) -> tuple[str, str, str]:
    """Return hit rate, median TTFT (both with the range of the rounds) and the 90th percentile."""
    samples = [sample for each in rounds for sample in each]
    rates = [_hit_rate(each) for each in rounds]
    medians = [statistics.median(s.ttft_s for s in each) for each in rounds]
    high = statistics.quantiles([s.ttft_s for s in samples], n=10)[-1]
    rate = f"{_hit_rate(samples):.1f} ({min(rates):.1f} to {max(rates):.1f})"
    median = statistics.median(s.ttft_s for s in samples)
    return rate, f"{median:.3f} ({min(medians):.3f} to {max(medians):.3f})", f"{high:.3f}"


def _hit_rate(samples: Sequence[Sample]) -> float:
    return 100 * sum(s.cached_tokens for s in samples) / sum(s.prompt_tokens for s in samples)


def table(found: Rounds) -> Table:
    """Return hit rates and times of both variants."""
    result = Table("host cache", "hit rate %", "TTFT s, median", "TTFT s, p90")
    for size, rounds in found.items():
        result.add_row(f"{size:g} GB" if size else "none", *_row(rounds))
    return result


def conditions(args: argparse.Namespace) -> str:
    """Return versions, hardware and workload of a measurement."""
    device, working = args.device_blocks * BLOCK_TOKENS, args.documents * args.tokens
    return (
        f"vLLM {VLLM} (CPU build), SmolLM2-135M float32, {_topology(args)}\n"
        f"{os.cpu_count()} cores {cpu_model()}, Python {platform.python_version()}\n"
        f"{args.documents} documents of {args.tokens} tokens = {working} tokens; device cache of "
        f"{device} tokens per worker\n"
        f"{args.rounds} rounds of {args.requests} requests, one at a time; in brackets the range "
        "of the rounds"
    )


def _topology(args: argparse.Namespace) -> str:
    return "1 prefill + 1 decode worker" if args.disaggregated else "1 aggregated worker"


def _different(found: Rounds) -> int:
    """Return the number of answers that differ between the variants."""
    texts = [[s.text for each in rounds for s in each] for rounds in found.values()]
    return sum(a != b for a, b in zip(*texts, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--disaggregated", action="store_true")
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512, help="of a document")
    parser.add_argument("--device-blocks", type=int, default=24, help="of 128 tokens")
    parser.add_argument("--requests", type=int, default=16, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("override", nargs="*", help="more settings of both endpoints")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hpc-dynamo-host-cache-"))
    found = asyncio.run(compare(provision(), args, folder))
    print(conditions(args))
    Console(width=110).print(table(found))
    wrong, count = _different(found), args.rounds * args.requests
    print(f"{wrong} of {count} answers differ between the variants")
    shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
