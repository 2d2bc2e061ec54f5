"""Profile files and their measurements."""

from pathlib import Path

import msgspec
import pytest

from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.interpolation import load_performance
from hpc_dynamo.planner.profile import (
    InterpolationError,
    Measurement,
    Metric,
    OperatingPoint,
    load_profile,
    read_measurements,
)
from hpc_dynamo.planner.profile_plot import plot_profile
from hpc_dynamo.run import write_json
from hpc_dynamo.timing_model import PROFILES
from tests.unit.planner import modelled

PROFILE = msgspec.structs.replace(
    modelled.measured(PROFILES["h100-8b"], 1e-9),
    errors={Metric.ttft: InterpolationError(0.01, 0.02, 3)},
)


def test_profile_is_read_as_written(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    write_json(file, PROFILE)
    assert load_profile(file) == PROFILE
    worker = load_performance(file)
    assert worker.startup_s == PROFILE.startup_s
    assert worker.itl_s(64, 512) > worker.itl_s(1, 512) > 0
    assert worker.transfer_s(8000) > worker.transfer_s(1000) > 0


def _written(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "profile.json"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a profile"),
        (b"\xff\xfe", "is not a profile"),
        (b"[]", "is not a profile"),
        (b'{"model": "m"}', "missing required field"),
        (msgspec.json.encode(modelled.profile()), "has no point of ttft"),
    ],
)
def test_invalid_profile_is_rejected(tmp_path: Path, content: bytes, said: str) -> None:
    file = _written(tmp_path, content)
    with pytest.raises(ConfigError) as e:
        load_performance(file)
    assert str(e.value).startswith(f"planner.profile={file}: ")
    assert said in e.value.message
    assert "hpc-dynamo profile" in e.value.hint


@pytest.mark.parametrize(("path", "said"), [("", "is not set"), ("nowhere.json", "No such file")])
def test_missing_profile_is_rejected(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^planner\.profile.*{said}") as e:
        load_performance(path)
    assert "hpc-dynamo profile" in e.value.hint


def test_measurements_of_all_attempts_are_read_without_torn_lines(tmp_path: Path) -> None:
    spots = [OperatingPoint(metric=Metric.itl, prompt_tokens=9, sequences=n) for n in (1, 2, 3)]
    points = [Measurement(point=spot, seconds=0.5, context_tokens=41.0) for spot in spots]
    lines = [msgspec.json.encode(point) for point in points]
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_bytes(lines[0] + b"\n" + lines[2][:30] + b"\n" + lines[1] + b"\n")
    second.write_bytes(b"\n" + lines[2][:-3])
    assert read_measurements([first, second]) == {p.point: [p] for p in points[:2]}
    second.write_bytes(b"\n" + lines[2] + b"\n" + lines[0] + b"\n")
    assert list(read_measurements([first, second]).values()) == [
        2 * points[:1],
        points[1:2],
        points[2:],
    ]


@pytest.mark.parametrize("form", ["png", "svg"])
def test_profile_is_plotted(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"profile.{form}"
    plot_profile(file, PROFILE)
    assert file.read_bytes().startswith((b"\x89PNG", b"<?xml"))
    if form == "svg":
        for word in ("TTFT", "ITL", "transfer", "held out"):
            assert f"<!-- {word}" in file.read_text()
