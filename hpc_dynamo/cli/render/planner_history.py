"""Table, summary and plot of the decisions of a planner."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.markup import escape

from hpc_dynamo.cli.render.progress import duration
from hpc_dynamo.cli.render.table import TEXT_WIDTH, Column, ResponsiveTable
from hpc_dynamo.config import Planner, PlannerMode
from hpc_dynamo.planner.records import PlannerRecord, RoleChange
from hpc_dynamo.planner.signals import PlannerDecision
from hpc_dynamo.plotting import Curve, Panel, Style
from hpc_dynamo.run import Run


@dataclass(frozen=True)
class PlannerHistory:
    """Records of all attempts of a run, in order."""

    records: Sequence[PlannerRecord]
    settings: Planner  # those of the last attempt

    @property
    def decisions(self) -> list[PlannerDecision]:
        return [r.decision for r in self.records if r.decision]

    @property
    def role_changes(self) -> list[RoleChange]:
        return [r.role_change for r in self.records if r.role_change]

    @property
    def started_at(self) -> float:
        """Return the start of the first interval, in seconds since the epoch."""
        first = self.decisions[0].signals
        return first.at - first.seconds


def decision_table(history: PlannerHistory) -> ResponsiveTable:
    """Return the intervals with a decision to change something, and the role changes."""
    figures = [Column(name) for name in ("at", "ready", "wanted", "load", "TTFT, ITL")]
    table = ResponsiveTable(*figures, Column("decision and reason", fold=TEXT_WIDTH), plain=True)
    for record in history.records:
        if record.decision and (record.decision.move or record.skipped):
            table.add_row(
                *map(escape, _decision_cells(record.decision, record.skipped, history.started_at))
            )
        elif record.role_change:
            blank = [""] * (len(figures) - 1)
            table.add_row(
                _at(record.role_change.at, history.started_at),
                *blank,
                escape(_role_change_text(record.role_change)),
            )
    return table


def _at(at: float, started_at: float) -> str:
    return duration(max(0.0, at - started_at))


def _decision_cells(d: PlannerDecision, skipped: str, started_at: float) -> tuple[str, ...]:
    signals, move = d.signals, d.move
    what = f"{move.count} {move.old} to {move.new}: {d.target.reason}" if move else d.target.reason
    return (
        _at(signals.at, started_at),
        f"{signals.prefill}P+{signals.decode}D",
        f"{d.target.prefill}P+{d.target.decode}D",
        f"{signals.rate_hz:.1f}/s x {signals.prompt_tokens:.0f}+{signals.answer_tokens:.0f}",
        f"{signals.ttft_s:.2f} s, {1000 * signals.itl_s:.0f} ms",
        "; ".join(filter(None, (what, d.target.shortfall, skipped and f"not done: {skipped}"))),
    )


def _role_change_text(f: RoleChange) -> str:
    took = f"drained in {f.drain_s:.1f} s, switched in {f.switch_s:.1f} s"
    result = f"failed: {f.reason}" if f.reason else "done"
    return f"worker {f.rank}: {f.old} to {f.new} {result}; {took}"


def summary_lines(history: PlannerHistory) -> Iterator[str]:
    """Yield the lines below the table."""
    decisions, changes = history.decisions, history.role_changes
    done = [f for f in changes if not f.reason]
    yield (
        f"{len(decisions)} intervals of {history.settings.interval_s:g} s, "
        f"{len(done)} role changes, {len(changes) - len(done)} failed"
    )
    if done:
        drain, switch = fmean(f.drain_s for f in done), fmean(f.switch_s for f in done)
        yield f"mean of a role change: drained in {drain:.2f} s, switched in {switch:.2f} s"
    if history.settings.mode is PlannerMode.sla:
        yield _attainment("TTFT", history.settings.ttft_s, [d.signals.ttft_s for d in decisions])
        yield _attainment("ITL", history.settings.itl_s, [d.signals.itl_s for d in decisions])
    short = sum(bool(d.target.shortfall) for d in decisions)
    if short:
        yield f"in {short} intervals the planner needed more workers than it could get"


def _attainment(name: str, target: float, means: Sequence[float]) -> str:
    measured = [mean for mean in means if mean]
    within = sum(mean <= target for mean in measured)
    return f"mean {name} within {target:g} s in {within} of {len(measured)} intervals with requests"


def title(run: Run, history: PlannerHistory) -> str:
    """Return the title of the plot: run, model, engine and policies of the last attempt."""
    config, settings = run.attempts()[-1].config(), history.settings
    targets = ""
    if settings.mode is PlannerMode.sla:
        targets = f", targets TTFT {settings.ttft_s:g} s, ITL {1000 * settings.itl_s:g} ms"
    served = f"{config.served_name} on {config.engine.name}"
    policies = f"router {config.router.policy}, planner {settings.mode}{targets}"
    return f"{run.path.name}: {served}, {policies}"


def panels(history: PlannerHistory) -> list[Panel]:
    """Return the panels that have a value above zero, over minutes since the first interval."""
    decisions, settings = history.decisions, history.settings
    at = [(d.signals.at - history.started_at) / 60 for d in decisions]
    signals, expected = [d.signals for d in decisions], [d.expected for d in decisions]
    sla = settings.mode is PlannerMode.sla

    def panel(what: str, target: float | None, style: Style, **curves: list[float]) -> Panel:
        named = [Curve(name.replace("_", " "), at, ys, style) for name, ys in curves.items()]
        return Panel(what, named, "minutes", target)

    ttft, itl = [s.ttft_s for s in signals], [s.itl_s for s in signals]
    prompt, answer = [s.prompt_tokens for s in signals], [s.answer_tokens for s in signals]
    prefill, decode = [float(s.prefill) for s in signals], [float(s.decode) for s in signals]
    observed, predicted = [s.rate_hz for s in signals], [e.rate_hz for e in expected]
    queued, active = (
        [float(s.queued_requests) for s in signals],
        [float(s.active_requests) for s in signals],
    )
    all_panels = [
        panel("workers", None, Style.steps, prefill=prefill, decode=decode),
        panel(
            "requests/s",
            None,
            Style.line,
            observed=observed,
            predicted_for_the_next_interval=predicted,
        ),
        panel("requests", None, Style.line, queued=queued, active=active),
        panel("tokens, mean", None, Style.line, prompt=prompt, answer=answer),
        panel("s, mean", settings.ttft_s if sla else None, Style.line, TTFT=ttft),
        panel("s, mean", settings.itl_s if sla else None, Style.line, ITL=itl),
    ]
    return [panel for panel in all_panels if any(any(curve.ys) for curve in panel.curves)]
