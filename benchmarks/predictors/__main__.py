"""Command line of `python -m benchmarks.predictors`; see the package."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from benchmarks import predictors
from benchmarks.common import provision
from benchmarks.predictors.backtest import Predictions, backtest
from benchmarks.predictors.results import Figure, tables
from benchmarks.predictors.series import Series, series, swing, trace
from hpc_dynamo.config import Forecast
from hpc_dynamo.errors import EngineError, HpcDynamoError, unknown_name
from hpc_dynamo.planner.forecast import PREDICTORS

ROOT = Path(__file__).parents[2]
TRACE = Path("../shared/traces/mooncake_conversation.jsonl")
INTERVALS_S = (30, 60, 180)
SIDES = ("hpc-dynamo", "dynamo")
DYNAMO = ("constant", "kalman", "arima", "prophet")  # arima is its default
SLOW = ("arima", "prophet")  # refit a model for every value
LIMIT_S = 1200.0  # for all series of one predictor


def main() -> int:
    args = _parser().parse_args()
    try:
        figures = list(_figures(args))
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    for table in tables(figures):
        Console(width=240).print(table)
    return 0


def _figures(args: argparse.Namespace) -> Iterator[Figure]:
    for side in args.sides:
        if side not in SIDES:
            raise unknown_name("side", side, SIDES)
    loads = {f"trace: {args.trace.name}": trace(args.trace), "swing: synthetic, 4 h": swing()}
    on = [
        one
        for name, arrivals in loads.items()
        for s in INTERVALS_S
        for one in series(name, arrivals, s)
    ]
    for kind in Forecast:
        _log(kind)
        yield from (Figure(kind, one, _hpc_dynamo(kind, one)) for one in on)
    if "dynamo" in args.sides:
        yield from _dynamo(on, [name for name in DYNAMO if not (args.quick and name in SLOW)])


def _hpc_dynamo(kind: Forecast, one: Series) -> Predictions:
    predictor = PREDICTORS[kind]()
    return backtest(one.values, predictor.observe, predictor.predict)


def _dynamo(on: list[Series], names: list[str]) -> Iterator[Figure]:
    python = provision.dynamo_planner() / "bin/python"
    for name in names:
        shown = f"Dynamo {provision.DYNAMO} {name}"
        _log(shown)
        try:
            found = _run_dynamo(python, name, [one.values for one in on])
        # A predictor that does not run here is skipped with a message.
        except EngineError as e:
            print(f"left out: {shown}: {e}", file=sys.stderr)
            continue
        yield from (Figure(shown, one, g) for one, g in zip(on, found, strict=True))


def _run_dynamo(python: Path, name: str, values: list[list[float]]) -> list[Predictions]:
    """Return Dynamo's predictions. Raises EngineError with the end of its output."""
    command = [str(python), "-m", "benchmarks.predictors.dynamo_process"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DYN_LOG": "error"}
    asked = json.dumps({"name": name, "series": values})
    try:
        run = subprocess.run(
            command, env=env, input=asked, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired as e:
        raise EngineError(f"not done after {LIMIT_S:.0f} s") from e
    if run.returncode:
        raise EngineError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    return [Predictions(*each) for each in json.loads(run.stdout.splitlines()[-1])]


def _log(name: str) -> None:
    print(name, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predictors", description=predictors.__doc__, formatter_class=raw
    )
    parser.add_argument(
        "--trace", type=Path, default=TRACE, help="Mooncake's JSON lines (%(default)s)"
    )
    parser.add_argument(
        "--sides", nargs="+", default=[*SIDES], metavar="NAME", help="default: both"
    )
    parser.add_argument("--quick", action="store_true", help=f"without {' and '.join(SLOW)}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
