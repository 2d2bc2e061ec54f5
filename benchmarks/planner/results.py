"""Results of the planner benchmark as tables and plots."""

from collections.abc import Callable, Iterator, Sequence

import msgspec
from rich.table import Table

from benchmarks.planner.loads import RANKS, Load
from hpc_dynamo.plotting import Curve, Panel, Style
from hpc_dynamo.simulation import DecidesRoles, SimulatedJob, SimulationResult, simulate
from hpc_dynamo.simulation.result import mean, quantile
from hpc_dynamo.simulation.result_plot import roles


class Figures(msgspec.Struct, frozen=True):
    """Results of one run."""

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
    def of(cls, load: Load, name: str, o: SimulationResult) -> "Figures":
        ttft, itl = o.ttft_s(), o.itl_s()
        return cls(
            load=load.name,
            name=name,
            goodput_hz=o.within_targets / load.seconds,
            attained=o.attainment,
            gpu_hours=o.gpu_hours,
            flips=o.role_changes,
            failed=o.failed_role_changes,
            lost=o.failed_requests,
            ttft_s=(mean(ttft), quantile(ttft, 0.99)),
            itl_s=(mean(itl), quantile(itl, 0.99)),
        )


class Bench:
    """Runs on one load. Goodput is over the duration of the load."""

    def __init__(self, load: Load, say: Callable[[str], None]) -> None:
        self.load, self.say = load, say
        self.figures, self.outcomes = list[Figures](), dict[str, SimulationResult]()

    def run(self, name: str, job: SimulatedJob, planner: DecidesRoles | None = None) -> None:
        self.say(f"{self.load.name}: {name}")
        self.keep(name, simulate(job, self.load.requests, planner))

    def keep(self, name: str, outcome: SimulationResult) -> None:
        figures = Figures.of(self.load, name, outcome)
        self.figures.append(figures)
        self.outcomes[name] = outcome
        self.say(f"  {figures.attained:.1%} in both targets, {figures.flips} flips")


def table(bench: Bench) -> Table:
    """Return a table, best goodput first."""
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
    """Yield the load, and the prefill workers over time of runs with role changes."""
    wide_s = 15.0
    count = int(bench.load.seconds / wide_s) + 1
    at, prompts, answers = [i * wide_s / 60 for i in range(count)], [0.0] * count, [0.0] * count
    for request in bench.load.requests:
        prompts[int(request.at / wide_s)] += request.prompt_tokens / wide_s / 1e3
        answers[int(request.at / wide_s)] += request.response_tokens / wide_s
    yield Panel("1,000 prompt tokens/s", [Curve("asked for", at, prompts)])
    yield Panel("answer tokens/s", [Curve("asked for", at, answers)])
    moving = [(n, o) for n, o in bench.outcomes.items() if o.role_changes or n.startswith("best")]
    curves = list[Curve]()
    for name, outcome in moving:
        prefill = next(roles(outcome))
        curves.append(Curve(name, prefill.xs, prefill.ys, Style.steps))
    yield Panel("prefill workers", curves, "minutes")


def compared(pairs: Sequence[Figures]) -> Table:
    """Return a table of real and virtual runs of the same load."""
    shown = Table(title=f"{pairs[0].load}: real ranks and virtual time", title_justify="left")
    shown.add_column("")
    for name in ("goodput/s", "attained", "TTFT mean, p99 s", "ITL mean, p99 ms", "flips", "lost"):
        shown.add_column(name, justify="right")
    for f in pairs:
        ttft, itl = f.ttft_s, [1e3 * s for s in f.itl_s]
        shown.add_row(
            *(f.name, f"{f.goodput_hz:.3f}", f"{f.attained:.1%}"),
            *(f"{ttft[0]:.3f}, {ttft[1]:.2f}", f"{itl[0]:.1f}, {itl[1]:.1f}"),
            *(str(f.flips), str(f.lost)),
        )
    return shown
