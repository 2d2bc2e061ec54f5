"""`python -m benchmarks.planner`: our planner, the oracle, static splits, and Dynamo's planner.

Two loads on 16 modelled ranks behind the real router, in virtual time (see docs/simulate.md): one
that turns from prompt-heavy to answer-heavy and back, and a production trace with its natural
swings. What each leaves of the load within both targets, and what it costs.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import planner_load, provision
from benchmarks.planner_load import RANKS, Load, job
from benchmarks.planner_rivals import MODES, Scheduled, best_splits, dynamo
from hpc_dynamo.config import Planner, PlannerKind, Role
from hpc_dynamo.draw import Curve, Panel, Style, draw
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.planner.planner import Planner as Ours
from hpc_dynamo.simulation import Decide, Job, Modelled, Outcome, simulate
from hpc_dynamo.simulation.outcome import mean, quantile
from hpc_dynamo.simulation.picture import roles
from hpc_dynamo.simulation.split import search

TRACE = Path("../shared/traces/mooncake_conversation.jsonl")
DYNAMO_S = 5.0  # between its decisions; those by its forecast come every 30 s
Start = Callable[[], AbstractContextManager[Decide | None]]


class Figures(msgspec.Struct, frozen=True):
    """One run."""

    load: str
    name: str
    goodput_hz: float
    attained: float
    gpu_hours: float
    flips: int
    failed: int
    lost: int
    ttft_s: tuple[float, float]  # mean, p99
    itl_s: tuple[float, float]

    @classmethod
    def of(cls, load: str, name: str, o: Outcome) -> "Figures":
        ttft, itl = o.ttft_s(), o.itl_s()
        return cls(
            load=load,
            name=name,
            goodput_hz=o.goodput_hz,
            attained=o.attainment,
            gpu_hours=o.gpu_hours,
            flips=o.flips,
            failed=o.failed,
            lost=o.lost,
            ttft_s=(mean(ttft), quantile(ttft, 0.99)),
            itl_s=(mean(itl), quantile(itl, 0.99)),
        )


class Bench:
    """Runs on one load, and what they showed. Goodput is over the load's own time for all: a
    run that ends later has no more requests."""

    def __init__(self, load: Load, say: Callable[[str], None]) -> None:
        self.load, self._say = load, say
        self.figures, self.outcomes = list[Figures](), dict[str, Outcome]()

    def run(self, name: str, job: Job, planner: Decide | None = None) -> None:
        self._say(f"{self.load.name}: {name}")
        self.keep(name, simulate(job, self.load.requests, planner))

    def keep(self, name: str, outcome: Outcome) -> None:
        figures = Figures.of(self.load.name, name, outcome)
        self.figures.append(replace_goodput(figures, outcome.good / self.load.seconds))
        self.outcomes[name] = outcome
        self._say(f"  {figures.attained:.1%} in both targets, {figures.flips} flips")


def replace_goodput(figures: Figures, goodput_hz: float) -> Figures:
    return msgspec.structs.replace(figures, goodput_hz=goodput_hz)


def static(bench: Bench, say: Callable[[str], None]) -> None:
    """The best and the worst split in hindsight."""
    tried = search(job(8), RANKS, bench.load.requests, lambda w: say(f"  {w}"), lambda s: None)
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


def ours(rules: Planner) -> tuple[Job, Ours]:
    """From an even split on."""
    start = job(RANKS // 2, interval_s=rules.interval_s)
    engine = start.engine
    timing = engine.timing
    performance = Modelled(timing, timing, engine.limits, start.flipping.turn_s)
    return start, Ours(rules, performance)


def rules(by: PlannerKind, interval_s: float) -> Planner:
    """The product's, but for what is planned by."""
    targets = planner_load.TARGETS
    return Planner(by=by, interval_s=interval_s, ttft_s=targets.ttft_s, itl_s=targets.itl_s)


def measure(bench: Bench, args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """All of them on one load."""
    for by in (PlannerKind.sla, PlannerKind.load):
        bench.run(f"planner={by}", *ours(rules(by, args.interval)))
    static(bench, say)
    oracle(bench)
    if args.no_dynamo:
        return
    env, start = provision.dynamo_planner(), job(RANKS // 2, interval_s=DYNAMO_S)
    with tempfile.TemporaryDirectory() as folder:
        for name, options in MODES.items():
            with dynamo(env, start, options, Path(folder) / "log") as planner:
                bench.run(f"Dynamo 1.6.1, {name}", start, planner)


def table(bench: Bench) -> Table:
    """The best first."""
    title = f"{bench.load.name}: {len(bench.load.requests)} requests, {RANKS} ranks"
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for name in (
        "goodput/s",
        "of oracle",
        "attained",
        "GPU-h",
        "flips",
        "lost",
        "TTFT mean, p99 s",
        "ITL ms",
    ):
        shown.add_column(name, justify="right")
    best = max(f.goodput_hz for f in bench.figures if f.name == "oracle")
    for f in sorted(bench.figures, key=lambda f: -f.goodput_hz):
        shown.add_row(
            f.name,
            *(f"{f.goodput_hz:.2f}", f"{f.goodput_hz / best:.1%}", f"{f.attained:.1%}"),
            *(f"{f.gpu_hours:.2f}", str(f.flips), str(f.lost)),
            f"{f.ttft_s[0]:.2f}, {f.ttft_s[1]:.1f}",
            f"{1e3 * f.itl_s[0]:.0f}, {1e3 * f.itl_s[1]:.0f}",
        )
    return shown


def panels(bench: Bench) -> Iterator[Panel]:
    """The load, and prefill workers over time of all that move."""
    wide_s = 15.0
    count = int(bench.load.seconds / wide_s) + 1
    at, prompts, answers = [i * wide_s / 60 for i in range(count)], [0.0] * count, [0.0] * count
    for request in bench.load.requests:
        prompts[int(request.at / wide_s)] += request.prompt / wide_s / 1e3
        answers[int(request.at / wide_s)] += request.answer / wide_s
    yield Panel("1,000 prompt tokens/s", [Curve("asked for", at, prompts)])
    yield Panel("answer tokens/s", [Curve("asked for", at, answers)])
    moving = [(n, o) for n, o in bench.outcomes.items() if o.flips or n.startswith("best")]
    curves = list[Curve]()
    for name, outcome in moving:
        prefill = next(roles(outcome))
        curves.append(Curve(name, prefill.xs, prefill.ys, Style.steps))
    yield Panel("prefill workers", curves, "minutes")


def loads(args: argparse.Namespace) -> Iterator[Load]:
    for name in args.load:
        if name == "turning":
            yield planner_load.turning(args.seed)
        else:
            yield planner_load.trace(args.trace, args.speed, args.requests)


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.planner", description=__doc__, formatter_class=raw
    )
    add = made.add_argument
    both = ["turning", "trace"]
    add("--load", nargs="+", choices=both, default=both, help="default: both")
    add("--trace", type=Path, default=TRACE, help="Mooncake's JSON lines (%(default)s)")
    add("--speed", type=float, default=4.5, help="the trace so many times as fast (%(default)s)")
    add("--requests", type=int, default=0, help="so many of the trace; 0: all")
    add("--seed", type=int, default=0, help="of the turning load (%(default)s)")
    interval_s = Planner().interval_s
    add("--interval", type=float, default=interval_s, help="of our planner, s (%(default)s)")
    add("--no-dynamo", action="store_true", help="without Dynamo's planner")
    add("--out", type=Path, metavar="DIR", help="write planner.json and a picture a load there")
    return made


def main() -> int:
    args, console = parser().parse_args(), Console(width=150)
    found = list[Figures]()
    try:
        for load in loads(args):
            bench = Bench(load, lambda text: print(text, file=sys.stderr, flush=True))
            measure(bench, args, bench._say)
            found += bench.figures
            console.print(table(bench))
            if args.out:
                args.out.mkdir(parents=True, exist_ok=True)
                name = load.name.split()[0]
                draw(args.out / f"planner-{name}.png", load.name, list(panels(bench)))
                encoded = msgspec.json.format(msgspec.json.encode(found))
                (args.out / "planner.json").write_bytes(encoded)
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
