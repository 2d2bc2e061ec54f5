"""A short run of each target; `make fuzz` runs them for longer."""

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_reader_raises_only_documented_errors(name: str) -> None:
    assert fuzz(name, seed=1, seconds=20, inputs=1500) > 0
