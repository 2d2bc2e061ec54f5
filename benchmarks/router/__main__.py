"""Command line of `python -m benchmarks.router`; see the package."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from benchmarks import router
from benchmarks.common.provision import environments
from benchmarks.router.tables import Results, tables
from hpc_dynamo.errors import EngineError, HpcDynamoError, UsageError, unknown_name

ROOT = Path(__file__).parents[2]
TRACE = Path("../shared/traces/mooncake_conversation.jsonl")
BYTES_PER_BLOCK = 250  # maximum, including growing dictionaries
SIDES = ("hpc-dynamo", "dynamo")


def main() -> int:
    args = _parser().parse_args()
    if args.quick:
        args.workers, args.blocks, args.repeats, args.requests = [64], [200_000], 1, 1000
    found = Results()
    try:
        pythons = _pythons(args.sides)
        for words in _runs(args):
            for _ in range(args.repeats):
                for side, python in pythons.items():
                    found.add(" ".join(words), _measure(python, side, words))
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        for table in tables(found):
            Console(width=150).print(table)
    return 0


def _pythons(sides: list[str]) -> dict[str, Path]:
    """Return the interpreter of each side."""
    for side in sides:
        if side not in SIDES:
            raise unknown_name("side", side, SIDES)
    pythons = {"hpc-dynamo": Path(sys.executable)}
    if "dynamo" in sides:
        pythons["dynamo"] = environments().dynamo / "bin/python"
    return {side: pythons[side] for side in sides}


def _runs(args: argparse.Namespace) -> Iterator[list[str]]:
    if not args.trace.exists():
        raise UsageError(f"no trace at {args.trace}", hint="--trace FILE names one")
    for workers in args.workers:
        trace = ["--trace", str(args.trace), "--requests", str(args.requests)]
        yield ["trace", "--workers", str(workers), *trace]
    for blocks in args.blocks:
        if blocks * BYTES_PER_BLOCK > _available_bytes():
            print(f"left out: {blocks:,} blocks do not fit into the memory", file=sys.stderr)
            continue
        for workers in args.workers:
            yield ["fill", "--workers", str(workers), "--blocks", str(blocks)]


def _measure(python: Path, side: str, words: list[str]) -> dict[str, object]:
    """Return the figures of a side. Raises EngineError with the end of its output."""
    command = [str(python), "-m", "benchmarks.router.measure", side, *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DYN_LOG": "error"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if run.returncode:
        raise EngineError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    print(f"{side} {' '.join(words)}: {run.stdout.strip()}", file=sys.stderr, flush=True)
    said: dict[str, object] = json.loads(run.stdout)
    return said


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=router.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trace", type=Path, default=TRACE, help=f"default: {TRACE}")
    parser.add_argument("--requests", type=int, default=3000, help="of the trace; 0: all")
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument(
        "--blocks", type=int, nargs="*", default=[1_000_000, 10_000_000, 50_000_000]
    )
    parser.add_argument(
        "--sides", nargs="+", default=[*SIDES], metavar="NAME", help="default: both"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
