"""What the planner of a run did: its decisions in a table, roles and load over time drawn."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.markup import escape

from hpc_dynamo import jsonl
from hpc_dynamo.cli.render.console import OUT
from hpc_dynamo.cli.render.progress import duration
from hpc_dynamo.cli.render.table import PROSE, Column, Grid
from hpc_dynamo.cli.run_lookup import find
from hpc_dynamo.cli.unknown_options import path
from hpc_dynamo.config import Planner, PlannerMode
from hpc_dynamo.errors import ConfigError, MissingDependency
from hpc_dynamo.planner.records import PlannerRecord, RoleChange
from hpc_dynamo.planner.signals import PlannerDecision
from hpc_dynamo.plotting import Curve, Panel, Style, draw
from hpc_dynamo.run import Run

PICTURE = "planner.png"  # in the run's folder


@dataclass(frozen=True)
class History:
    """All attempts of a run, one after the other."""

    records: Sequence[PlannerRecord]
    rules: Planner  # of the last attempt

    @property
    def decisions(self) -> list[PlannerDecision]:
        return [r.decision for r in self.records if r.decision]

    @property
    def flips(self) -> list[RoleChange]:
        return [r.role_change for r in self.records if r.role_change]

    @property
    def began(self) -> float:
        first = self.decisions[0].signals
        return first.at - first.seconds


def options(verb: ArgumentParser) -> None:
    about = f"where the picture goes: .png, .svg or .pdf (RUN/{PICTURE})"
    verb.add_argument("--out", type=path, metavar="FILE", help=about)


def report(args: Namespace) -> int:
    """Show what the planner saw, decided and did, and draw it."""
    run = find(args, planned, "run with a planner")
    history = history_of(run)
    OUT.print(_table(history))
    for line in summary(history):
        OUT.print(line, markup=False, highlight=False)
    file = args.out or run.path / PICTURE
    try:
        draw(file, title(run, history), panels(history))
    except MissingDependency as e:
        OUT.print(f"no picture: {e}", markup=False)
    except (OSError, ValueError) as e:  # a place that cannot be written to, a form not known
        raise ConfigError(f"{file} cannot be drawn: {e}", hint="--out picture.png") from e
    else:
        OUT.print(f"drawn: {file}", markup=False, highlight=False)
    return 0


def planned(run: Run) -> bool:
    return any(attempt.planner_file.exists() for attempt in run.attempts())


def history_of(run: Run) -> History:
    """Raises ConfigError where nothing was decided."""
    attempts = run.attempts()
    files = [attempt.planner_file for attempt in attempts]
    records = [record for file in files for record in jsonl.read(file, PlannerRecord)]
    if not any(record.decision for record in records):
        hint = "planner=load or planner=sla; the first decision comes after planner.interval_s"
        raise ConfigError(f"{run.path} has no decision of a planner", hint=hint)
    return History(records, attempts[-1].config().planner)


def _table(history: History) -> Grid:
    """Intervals in which something was to change, and what changed."""
    figures = [Column(name) for name in ("at", "ready", "wanted", "load", "TTFT, ITL")]
    table = Grid(*figures, Column("what and why", fold=PROSE), plain=True)
    for record in history.records:
        if record.decision and (record.decision.move or record.skipped):
            table.add(*map(escape, _decided(record.decision, record.skipped, history.began)))
        elif record.role_change:
            blank = [""] * (len(figures) - 1)
            table.add(
                _at(record.role_change.at, history.began),
                *blank,
                escape(_flipped(record.role_change)),
            )
    return table


def _at(at: float, began: float) -> str:
    return duration(max(0.0, at - began))


def _decided(d: PlannerDecision, left_out: str, began: float) -> tuple[str, ...]:
    seen, move = d.signals, d.move
    what = f"{move.count} {move.old} to {move.new}: {d.target.reason}" if move else d.target.reason
    return (
        _at(seen.at, began),
        f"{seen.prefill}P+{seen.decode}D",
        f"{d.target.prefill}P+{d.target.decode}D",
        f"{seen.rate_hz:.1f}/s x {seen.prompt_tokens:.0f}+{seen.answer_tokens:.0f}",
        f"{seen.ttft_s:.2f} s, {1000 * seen.itl_s:.0f} ms",
        "; ".join(filter(None, (what, d.target.shortfall, left_out and f"not done: {left_out}"))),
    )


def _flipped(f: RoleChange) -> str:
    took = f"drained in {f.drain_s:.1f} s, turned in {f.switch_s:.1f} s"
    result = f"failed: {f.reason}" if f.reason else "done"
    return f"worker {f.rank}: {f.old} to {f.new} {result}; {took}"


def summary(history: History) -> Iterator[str]:
    """Lines below the table."""
    decisions, flips = history.decisions, history.flips
    done = [f for f in flips if not f.reason]
    yield (
        f"{len(decisions)} intervals of {history.rules.interval_s:g} s, "
        f"{len(done)} changes of role, {len(flips) - len(done)} failed"
    )
    if done:
        drain, turn = fmean(f.drain_s for f in done), fmean(f.switch_s for f in done)
        yield f"mean of a change: drained in {drain:.2f} s, turned in {turn:.2f} s"
    if history.rules.mode is PlannerMode.sla:
        yield _kept("TTFT", history.rules.ttft_s, [d.signals.ttft_s for d in decisions])
        yield _kept("ITL", history.rules.itl_s, [d.signals.itl_s for d in decisions])
    short = sum(bool(d.target.shortfall) for d in decisions)
    if short:
        yield f"in {short} intervals not all that was needed could be had"


def _kept(name: str, target: float, means: Sequence[float]) -> str:
    seen = [mean for mean in means if mean]
    kept = sum(mean <= target for mean in seen)
    return f"mean {name} within {target:g} s in {kept} of {len(seen)} intervals with requests"


def title(run: Run, history: History) -> str:
    """Return run, model, engine and policies of the last attempt."""
    config, rules = run.attempts()[-1].config(), history.rules
    targets = ""
    if rules.mode is PlannerMode.sla:
        targets = f", targets TTFT {rules.ttft_s:g} s, ITL {1000 * rules.itl_s:g} ms"
    served = f"{config.served_name} on {config.engine.name}"
    return (
        f"{run.path.name}: {served}, router {config.router.policy}, planner {rules.mode}{targets}"
    )


def panels(history: History) -> list[Panel]:
    """Over minutes since the first interval; those with something to see."""
    decisions, rules = history.decisions, history.rules
    at = [(d.signals.at - history.began) / 60 for d in decisions]
    seen, expected = [d.signals for d in decisions], [d.expected for d in decisions]
    sla = rules.mode is PlannerMode.sla

    def panel(what: str, target: float | None, style: Style, **curves: list[float]) -> Panel:
        named = [Curve(name.replace("_", " "), at, ys, style) for name, ys in curves.items()]
        return Panel(what, named, "minutes", target)

    ttft, itl = [s.ttft_s for s in seen], [s.itl_s for s in seen]
    prompt, answer = [s.prompt_tokens for s in seen], [s.answer_tokens for s in seen]
    prefill, decode = [float(s.prefill) for s in seen], [float(s.decode) for s in seen]
    came, next_ = [s.rate_hz for s in seen], [e.rate_hz for e in expected]
    queued, active = (
        [float(s.queued_requests) for s in seen],
        [float(s.active_requests) for s in seen],
    )
    drawn = [
        panel("workers", None, Style.steps, prefill=prefill, decode=decode),
        panel("requests/s", None, Style.line, came=came, expected_of_the_next_interval=next_),
        panel("requests", None, Style.line, queued=queued, active=active),
        panel("tokens, mean", None, Style.line, prompt=prompt, answer=answer),
        panel("s, mean", rules.ttft_s if sla else None, Style.line, TTFT=ttft),
        panel("s, mean", rules.itl_s if sla else None, Style.line, ITL=itl),
    ]
    return [panel for panel in drawn if any(any(curve.ys) for curve in panel.curves)]
