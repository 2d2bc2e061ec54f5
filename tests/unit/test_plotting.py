"""Plots: axes from zero, integer ticks for counts, equal curves both visible."""

import io
import sys
from pathlib import Path

import pytest

from hpc_dynamo.plotting import Curve, Panel, Style, figure_of
from tests.support.terminal import Call, printed, refused

pytest.importorskip("matplotlib")
TRACE = '{"timestamp": %d, "input_length": 2000, "output_length": 20, "hash_ids": [1, 2, 3]}\n'
SPLIT = ("topology.prefill.workers=2", "topology.decode.workers=2")


def steps(name: str, *counts: float) -> Curve:
    return Curve(name, list(range(len(counts))), counts, Style.steps)


@pytest.mark.parametrize("counts", [(2, 2), (4, 4), (0, 0), (1, 3), (16, 15), (300, 299)])
def test_worker_counts_start_at_zero_with_integer_ticks(counts: tuple[float, float]) -> None:
    panel = Panel("workers", [steps("prefill", *counts), steps("decode", *counts)])
    (ax,) = figure_of("t", [panel]).axes
    low, high = ax.get_ylim()
    assert low == 0
    assert high > max(counts)
    ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


def test_equal_curves_are_both_visible() -> None:
    """The plot has the colours of both curves, not only in the legend."""
    panel = Panel("workers", [steps("prefill", 2, 2, 2), steps("decode", 2, 2, 2)])
    figure = figure_of("t", [panel])
    (ax,) = figure.axes
    ax.get_legend().remove()
    first, second = ax.get_lines()
    assert first.get_linewidth() > second.get_linewidth()
    shown = io.BytesIO()
    figure.savefig(shown, format="svg")
    assert shown.getvalue().count(b"stroke: #1f77b4") == 1
    assert shown.getvalue().count(b"stroke: #ff7f0e") == 1


def test_latencies_start_at_zero() -> None:
    panel = Panel("s", [Curve("TTFT", [0, 1], [2.0, 2.05])], target=2.5)
    (ax,) = figure_of("t", [panel]).axes
    assert ax.get_ylim()[0] == 0


def test_simulation_plot_names_trace_engine_workers_and_policies(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(TRACE % (500 * i) for i in range(20)))
    words = ("simulate", "--trace", "a.jsonl", *SPLIT, "--picture", "a.svg")
    printed(call(*words, "planner.mode=load"))
    text = (tmp_path / "a.svg").read_text()
    title = "a.jsonl on h100-8b, 2 prefill + 2 decode; router kv, planner load"
    assert title in text, "matplotlib leaves texts as comments"


def test_simulate_with_plot_but_without_matplotlib_fails_at_once(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(TRACE % (500 * i) for i in range(20)))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = call("simulate", "--trace", "a.jsonl", *SPLIT, "--picture", "a.svg")
    refused(done, "pictures need matplotlib")
    assert "goodput" not in done.stdout
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    refused(call("simulate", "--trace", "a.jsonl", *SPLIT, "--picture", "none/a.svg"), "mkdir -p ")
