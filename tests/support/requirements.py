"""Parts of a test machine that must not be missing: the words of HPC_DYNAMO_REQUIRE."""

import os
from typing import NoReturn

import pytest


def required(what: str) -> bool:
    """Return True if HPC_DYNAMO_REQUIRE has this word."""
    return what in os.environ.get("HPC_DYNAMO_REQUIRE", "").replace(",", " ").split()


def skip_without(what: str, reason: str) -> NoReturn:
    """Skip the test, since a part of the machine is missing; fail it if the part is required."""
    (pytest.fail if required(what) else pytest.skip)(reason)
    raise AssertionError("both raise")
