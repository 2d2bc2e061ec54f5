"""Traces that would fill the memory or simulate indefinitely."""

from pathlib import Path

import pytest

from hpc_dynamo.errors import InputError
from hpc_dynamo.simulation.load import read_trace


def line(timestamp: float) -> str:
    return f'{{"timestamp": {timestamp}, "input_length": 1, "output_length": 1}}\n'


@pytest.mark.parametrize("last", [1e308, 1e12])
def test_trace_of_centuries_is_refused(tmp_path: Path, last: float) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(line(-last) + line(last))
    with pytest.raises(InputError, match="at most 366 are possible"):
        read_trace(trace)


def test_file_without_newlines_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    with trace.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=":1: "):
        read_trace(trace)
