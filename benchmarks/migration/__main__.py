"""Measure what recorded streams cost: `serve.migrations=0` and `3` in alternating rounds.

    python -m benchmarks.migration                two minutes
    python -m benchmarks.migration --rounds 12    less noise

Both endpoints run at the same time, and only one has a load. Each round loads both, in the opposite
order of the last round. CPU seconds are those of head and frontend; on a shared machine they are
more reliable than requests per second.
"""

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.frontend.hpc_dynamo_target import HpcDynamoTarget
from benchmarks.frontend.load import Load, Measurement, measure, warm_up
from benchmarks.frontend.peers import FixedBackend
from benchmarks.frontend.targets import BackendKind
from hpc_dynamo.demo.provision import provision

LIMITS = (0, 3)
PROMPT_TOKENS = 100
KINDS = {BackendKind.FAST: "many tokens in one read", BackendKind.PACED: "one token in one read"}

Rounds = dict[int, list[Measurement]]
"""Measurements of all rounds by `serve.migrations`."""


async def compare(kind: BackendKind, args: argparse.Namespace, folder: Path) -> Rounds:
    """Load both endpoints in alternating order."""
    load = Load("shared", PROMPT_TOKENS, args.streams, args.answer, kind, args.seconds)
    tokenizer = args.model / "tokenizer.json"
    targets = {
        limit: _target(folder / f"{kind.name}-{limit}", kind, args, limit) for limit in LIMITS
    }
    found: Rounds = {limit: [] for limit in LIMITS}
    try:
        urls = {limit: await target.start() for limit, target in targets.items()}
        for limit, target in targets.items():
            await warm_up(target, urls[limit], load, tokenizer, folder)
        for number in range(args.rounds):
            for limit in LIMITS if number % 2 else reversed(LIMITS):
                measured = await measure(targets[limit], urls[limit], load, tokenizer, folder)
                print(f"{kind.name} migrations={limit}: {measured}", file=sys.stderr, flush=True)
                found[limit].append(measured)
    finally:
        for target in targets.values():
            await asyncio.shield(target.stop())
    return found


def _target(
    folder: Path, kind: BackendKind, args: argparse.Namespace, limit: int
) -> HpcDynamoTarget:
    backend = FixedBackend(folder / "backend", kind)
    return HpcDynamoTarget(folder, args.model, 1, backend, migrations=limit)


def table(kind: BackendKind, found: Rounds) -> Table:
    """Return medians and ranges. The last rows are those of the ratios of each round, and the
    ratios of the sums of all rounds."""
    result = Table("serve.migrations", "streams/s", "CPU s per 1,000 streams", "errors")
    result.title = f"Streams, {KINDS[kind]}"
    for limit in LIMITS:
        errors = sum(row.errors for row in found[limit])
        rates, costs = map(_spread, (_rates(found[limit]), _costs(found[limit])))
        result.add_row(str(limit), rates, costs, str(errors))
    without, with_record = (found[limit] for limit in LIMITS)
    rates = _ratio(_rates(without), _rates(with_record))
    result.add_row("ratio", rates, _ratio(_costs(without), _costs(with_record)), "")
    totals = [_total(found[limit]) for limit in reversed(LIMITS)]
    result.add_row("ratio of sums", *(f"{a / b:.3f}" for a, b in zip(*totals, strict=True)), "")
    return result


def _total(rows: Sequence[Measurement]) -> tuple[float, float]:
    """Return streams per second, and CPU seconds per stream."""
    streams = sum(row.requests for row in rows)
    seconds = sum(row.seconds for row in rows)
    return streams / seconds, sum(row.cost.frontend_s for row in rows) / streams


def _rates(rows: Sequence[Measurement]) -> list[float]:
    return [row.requests / row.seconds for row in rows]


def _costs(rows: Sequence[Measurement]) -> list[float]:
    return [1000 * row.cost.frontend_s / row.requests for row in rows]


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _ratio(before: Sequence[float], after: Sequence[float]) -> str:
    return _spread([b / a for a, b in zip(before, after, strict=True)])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=4, help="duration of each load")
    parser.add_argument("--streams", type=int, default=128, help="concurrent streams")
    parser.add_argument("--answer", type=int, default=200, help="tokens of each stream")
    parser.add_argument("--model", type=Path, help="folder with tokenizer.json; default: SmolLM2")
    args = parser.parse_args()
    args.model = args.model or provision().model
    folder = Path(tempfile.mkdtemp(prefix="hpc-dynamo-migration-"))
    for kind in KINDS:
        Console(width=100).print(table(kind, asyncio.run(compare(kind, args, folder))))
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
