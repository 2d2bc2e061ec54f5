"""`hpc-dynamo simulate`: output, search and errors."""

from pathlib import Path

import msgspec
import pytest

from tests.support.terminal import Call, printed, refused

SPLIT = ("topology.prefill.workers=2", "topology.decode.workers=2")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Forty requests in twenty seconds, in a file whose name a shell must quote."""
    line = {"input_length": 2000, "output_length": 20, "hash_ids": [1, 2, 3]}
    rows = [msgspec.json.encode({**line, "timestamp": 500 * i}) for i in range(40)]
    file = tmp_path / "it's a trace, 1.jsonl"
    file.write_bytes(b"\n".join(rows))
    return file


def test_simulate_prints_figures_and_writes_a_plot(call: Call, trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "out.svg"
    text = printed(call("simulate", "--trace", str(trace), *SPLIT, "--picture", str(picture)))
    assert "40 requests in 19.7 s of virtual time" in text
    for name in ("goodput", "100.0 % of all requests", "GPU-hours", "TTFT", "ITL", "0 requests"):
        assert name in text
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize("by", ["load", "sla"])
def test_simulate_runs_the_planner(call: Call, trace: Path, by: str) -> None:
    words = (f"planner.mode={by}", "planner.interval_s=2")
    assert "role changes" in printed(call("simulate", f"--trace={trace}", *SPLIT, *words))


def test_search_prints_the_overrides_of_the_best_split(call: Call, trace: Path) -> None:
    text = printed(call("simulate", "--trace", str(trace), *SPLIT, "--search"))
    assert "3 prefill + 1 decode" in text
    assert "the best of 4: topology=" in text


def test_simulate_reports_errors_of_a_trace(call: Call, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"timestamp": 0, "input_length": 5, "output_length": 1}\n{"timestamp": "x"}\n')
    where = "bad.jsonl:2: Expected `float`, got `str` - at `$.timestamp`"
    refused(call("simulate", "--trace", str(bad)), where, "input_length, output_length, hash_ids")
    refused(call("simulate", "--trace", str(tmp_path / "none")), "No such file")
    refused(call("simulate"), "simulate.trace is not set", "--trace FILE")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate.kv_cache_tokens=1000"], "simulate.kv_cache_tokens=4"),
        (["topology=aggregated", "planner.mode=load"], "has no roles to change"),
        (["simulate.speed=0"], "simulate.speed"),
        (["simulate.timing_model=h10-8b"], "h100-8b"),
        (["topology=aggregated", "--search"], "topology.prefill.workers"),
        (["simulate.plot=a.jpeg"], ".svg"),
        (["topology.prefill.tensor_parallel=2"], "the same parallel sizes"),
    ],
)
def test_simulate_refuses_invalid_configurations(
    call: Call, trace: Path, words: list[str], said: str
) -> None:
    refused(call("simulate", "--trace", str(trace), *words), said)
