"""Command line of `python -m benchmarks.planner`; see the package."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import planner
from benchmarks.common import provision
from benchmarks.planner import loads, real_ranks
from benchmarks.planner.baselines import MODES, Scheduled, best_splits, dynamo
from benchmarks.planner.loads import RANKS, Load, job
from benchmarks.planner.results import Bench, Figures, compared, panels, table
from hpc_dynamo.config import Planner, PlannerMode, Role
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.planner.planner import RolePlanner
from hpc_dynamo.plotting import draw
from hpc_dynamo.simulation import SimulatedJob, TimingPerformance
from hpc_dynamo.simulation.split_search import search_splits

TRACE = Path("../shared/traces/mooncake_conversation.jsonl")
REAL_RANKS, REAL_SPLITS = 4, [1, 2]  # prefill workers
DYNAMO_S = 5.0  # interval of Dynamo's planner; its predictions are every 30 s


def static(bench: Bench) -> None:
    """Run the best and the worst static split."""
    tried = search_splits(job(8), RANKS, bench.load.requests, lambda w: None, lambda s: None)
    apart = [t for t in tried if Role.prefill in t.workers]
    for name, each in (("best static", apart[0]), ("worst static", apart[-1])):
        prefill, decode = (each.workers[role] for role in (Role.prefill, Role.decode))
        bench.keep(f"{name}, {prefill} + {decode}", each.outcome)
    for each in tried:
        if Role.aggregated in each.workers:
            bench.keep("aggregated", each.outcome)


def oracle(bench: Bench) -> None:
    splits = best_splits(job(8), bench.load)
    bench.run("oracle", job(splits[0]), Scheduled(splits, job(8).interval_s))


def hpc_dynamo_planner(rules: Planner) -> tuple[SimulatedJob, RolePlanner]:
    """Return the planner with an even split."""
    start = job(RANKS // 2, interval_s=rules.interval_s)
    engine = start.engine
    timing = engine.timing
    performance = TimingPerformance(timing, timing, engine.sizes, start.role_change.role_change_s)
    return start, RolePlanner(rules, performance)


def rules(by: PlannerMode, interval_s: float) -> Planner:
    """Return the default planner settings with these targets."""
    targets = loads.TARGETS
    return Planner(mode=by, interval_s=interval_s, ttft_s=targets.ttft_s, itl_s=targets.itl_s)


def measure(bench: Bench, args: argparse.Namespace) -> None:
    """Run all planners on one load."""
    for by in (PlannerMode.sla, PlannerMode.load):
        bench.run(f"planner={by}", *hpc_dynamo_planner(rules(by, args.interval)))
    static(bench)
    oracle(bench)
    if args.no_dynamo:
        return
    env, start = provision.dynamo_planner(), job(RANKS // 2, interval_s=DYNAMO_S)
    with tempfile.TemporaryDirectory() as folder:
        for name, options in MODES.items():
            with dynamo(env, start, options, Path(folder) / "log") as planner:
                bench.run(f"Dynamo 1.6.1, {name}", start, planner)


def real(args: argparse.Namespace, say: Callable[[str], None]) -> list[Figures]:
    """Run each case on real ranks and in virtual time; plot each."""
    load, found = real_ranks.load(args.ranks, args.seed), list[Figures]()
    with tempfile.TemporaryDirectory() as folder:
        for case, file in _cases(load, args, Path(folder) / "profile.json"):
            say(f"{load.name}: {case.name}, {load.seconds:.0f} s in real time")
            outcomes = {
                "real": real_ranks.real(case, Path(folder) / file),
                "virtual": real_ranks.virtual(case),
            }
            found += [Figures.of(load, f"{case.name}, {name}", o) for name, o in outcomes.items()]
            if args.out:
                title = f"{load.name}, {case.name}: real ranks and virtual time"
                draw(args.out / file, title, real_ranks.panels(list(outcomes.items())))
    return found


def _cases(
    load: Load, args: argparse.Namespace, profile: Path
) -> Iterator[tuple[real_ranks.Case, str]]:
    """Yield the cases with the names of their plots."""
    name = "planner-real" if args.ranks == REAL_RANKS else f"planner-real-{args.ranks}-ranks"
    for prefill in args.splits:
        yield real_ranks.Case(load, args.ranks, prefill), f"{name}-{prefill}.png"
    start = real_ranks.Case(load, args.ranks, args.ranks // 2)
    real_ranks.profile(profile, start)
    for by in (PlannerMode.sla, PlannerMode.load):
        yield start.planned(by, profile), f"{name}-{by}.png"


def selected_loads(args: argparse.Namespace) -> Iterator[Load]:
    for name in args.load:
        if name == "turning":
            yield loads.turning(args.seed)
        else:
            yield loads.trace(args.trace, args.speed, args.requests)


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.planner", description=planner.__doc__, formatter_class=raw
    )
    add = made.add_argument
    both = ["turning", "trace"]
    add("--load", nargs="+", choices=both, default=both, help="default: both")
    add("--trace", type=Path, default=TRACE, help="Mooncake's JSON lines (%(default)s)")
    add("--speed", type=float, default=3.0, help="the trace so many times as fast (%(default)s)")
    add("--requests", type=int, default=0, help="so many of the trace; 0: all")
    add("--seed", type=int, default=0, help="of the turning load (%(default)s)")
    interval_s = Planner().interval_s
    add(
        "--interval",
        type=float,
        default=interval_s,
        help="interval of the planner, s (%(default)s)",
    )
    add("--real", action="store_true", help="instead: real simulator ranks against virtual time")
    add("--ranks", type=int, default=REAL_RANKS, help="with --real (%(default)s)")
    splits = "with --real: prefill workers of the splits that stay (%(default)s)"
    add("--splits", type=int, nargs="+", default=REAL_SPLITS, help=splits)
    add("--no-dynamo", action="store_true", help="without Dynamo's planner")
    add("--out", type=Path, metavar="DIR", help="write planner.json and a picture a load there")
    return made


def virtual(args: argparse.Namespace, say: Callable[[str], None]) -> Iterator[Table]:
    found = list[Figures]()
    for load in selected_loads(args):
        bench = Bench(load, say)
        measure(bench, args)
        found += bench.figures
        yield table(bench)
        if args.out:
            name = load.name.split()[0]
            draw(args.out / f"planner-{name}.png", load.name, list(panels(bench)))
            (args.out / "planner.json").write_bytes(_json(found))


def _json(found: list[Figures]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(found))


def main() -> int:
    args, console = parser().parse_args(), Console(width=150)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
        if args.real:
            found = real(args, say)
            console.print(compared(found))
            if args.out:
                (args.out / f"planner-real-{args.ranks}.json").write_bytes(_json(found))
        else:
            for each in virtual(args, say):
                console.print(each)
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
