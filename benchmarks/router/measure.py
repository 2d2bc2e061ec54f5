"""Measures one index in its own process and prints its figures as JSON.

python -m benchmarks.router.measure hpc-dynamo trace --trace FILE --workers 64
python -m benchmarks.router.measure hpc-dynamo fill --blocks 1000000 --workers 64
"""

import argparse
import gc
import json
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from benchmarks.router.workload import (
    BLOCK,
    LONG_BLOCKS,
    Batch,
    Engines,
    long_prompts,
    read,
    synthetic,
)

SIDES = {
    "hpc-dynamo": ("hpc_dynamo_index", "HpcDynamoIndex"),
    "dynamo": ("dynamo_index", "DynamoIndex"),
}
PAGE_BYTES = 4096
DECISIONS = 400  # prompts whose decisions are timed
Figures = dict[str, float]
clock = time.perf_counter


class Side(Protocol):
    """An index under test. Its implementation defines what each time includes."""

    name: str
    version: str
    keys: Sequence[Any]  # workers as in the result of `find`

    def __init__(self, workers: int) -> None: ...
    def learn(self, worker: int, payload: bytes) -> None: ...
    def prepared(self, prompt: Any) -> Any: ...
    def hashes_of(self, prompt: Any) -> Sequence[int]: ...
    def fill(self, worker: int, prepared: Any) -> None: ...
    def prompt(self, tokens: bytes) -> Any: ...
    def hashes(self, tokens: Any) -> Sequence[int]: ...
    def find(self, hashes: Sequence[int]) -> Mapping[Any, int]: ...
    def settle(self) -> None: ...


class Load:
    """Pending work of the workers; both sides select with the same function."""

    def __init__(self, keys: Sequence[Any]) -> None:
        self._keys, self._ahead = keys, array("d", [0.0] * len(keys))  # in blocks

    def choose(self, found: Mapping[Any, int], blocks: int) -> int:
        """Return the worker with the least pending work, as the policy `kv` counts it."""
        get, keys, ahead = found.get, self._keys, self._ahead
        chosen = min(range(len(keys)), key=lambda w: ahead[w] + blocks - get(keys[w], 0))
        ahead[chosen] += blocks - get(keys[chosen], 0)
        return chosen


def trace(side: Side, args: argparse.Namespace) -> Figures:
    """Measure events and decisions of the trace."""
    requests = read(args.trace, args.requests)
    engines, figures = Engines(requests, args.workers), Figures()
    figures |= _learned(side, "prompt", engines.prompts())
    figures |= _learned(side, "answer", engines.answers())
    asked = [
        side.prompt(request.tokens) for request in requests[:: len(requests) // DECISIONS or 1]
    ]
    figures |= _decided(side, "trace", [side.hashes(tokens) for tokens in asked])
    long = [side.prompt(tokens) for tokens in long_prompts(requests)[:DECISIONS]]
    began = clock()
    hashed = [side.hashes(tokens) for tokens in long]
    figures["hash_us"] = (clock() - began) / max(1, len(long)) * 1e6
    figures |= _decided(side, "long", hashed)
    figures |= _learned(side, "eviction", engines.evictions())
    return figures


def fill(side: Side, args: argparse.Namespace) -> Figures:
    """Fill the index with synthetic prompts, then measure decisions."""
    count, spent_s, before = args.blocks // LONG_BLOCKS, 0.0, _resident()
    longest_s = longest_cpu_s = 0.0
    for number in range(count):
        prepared = side.prepared(synthetic(number))
        began, cpu_began = clock(), time.process_time()
        side.fill(number % args.workers, prepared)
        took_s, cpu_s = clock() - began, time.process_time() - cpu_began
        spent_s += took_s
        longest_s, longest_cpu_s = max(longest_s, took_s), max(longest_cpu_s, cpu_s)
    figures = {
        "bytes_a_block": (_resident() - before) / (count * LONG_BLOCKS),
        "filled_blocks_s": count * LONG_BLOCKS / spent_s,
        "longest_ms": longest_s * 1e3,
        "longest_cpu_ms": longest_cpu_s * 1e3,
    }
    some = range(0, count, max(1, count // DECISIONS))
    return figures | _decided(side, "long", [side.hashes_of(synthetic(n)) for n in some])


def _learned(side: Side, what: str, made: Iterable[Batch]) -> Figures:
    batches = [*made]
    gc.collect()
    began, cpu_began = clock(), time.process_time()
    for batch in batches:
        side.learn(batch.worker, batch.payload)
    side.settle()
    took_s, cpu_s = clock() - began, time.process_time() - cpu_began
    blocks = sum(batch.blocks for batch in batches)
    return {
        f"{what}_batches_s": len(batches) / took_s,
        f"{what}_blocks_s": blocks / took_s,
        f"{what}_cpu_ns": cpu_s / blocks * 1e9,  # per block, all threads
    }


def _decided(side: Side, what: str, asked: list[Sequence[int]]) -> Figures:
    """Measure each prompt once, with realistic misses of the processor's caches."""
    load, finds, choices, depths = Load(side.keys), list[float](), list[float](), 0
    for hashes in asked:
        began = clock()
        found = side.find(hashes)
        between = clock()
        load.choose(found, len(hashes))
        finds.append(between - began)
        choices.append(clock() - began)
        depths += max(found.values(), default=0)
    share = depths / max(1, sum(map(len, asked)))
    figures = {f"{what}_decisions_s": len(choices) / sum(choices), f"{what}_held": share}
    for name, times in (("find", finds), ("decision", choices)):
        times.sort()
        figures[f"{what}_{name}_p50_us"] = times[len(times) // 2] * 1e6
        figures[f"{what}_{name}_p99_us"] = times[len(times) * 99 // 100] * 1e6
    return figures


def _resident() -> int:
    """Return the bytes of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("what", choices=("trace", "fill"))
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=0)
    args = parser.parse_args()
    module, name = SIDES[args.side]
    side: Side = getattr(import_module(f"benchmarks.router.{module}"), name)(args.workers)
    figures = (trace if args.what == "trace" else fill)(side, args)
    said = {"name": side.name, "version": side.version, "block_tokens": BLOCK}
    print(json.dumps(said | {"figures": figures}))


if __name__ == "__main__":
    main()
