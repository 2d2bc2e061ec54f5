"""The security page: each claim has a test, and its fields are those of the code."""

import re
from pathlib import Path

import pytest

from hpc_dynamo.dispatch.reserved_fields import REFUSED_FIELDS, RESERVED_FIELDS

ROOT = Path(__file__).parents[3]
LINES = (ROOT / "docs/operations/security.md").read_text().splitlines()
CODE = re.compile("`([^`]+)`")


def rows(header: str) -> list[list[str]]:
    """Return the cells of the table with this header."""
    start = LINES.index(header) + 2
    end = next(i for i, line in enumerate(LINES) if i >= start and not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES[start:end]]


CLAIMS = rows("| Claim | Test |")


@pytest.mark.parametrize(("claim", "tests"), CLAIMS, ids=[claim[:40] for claim, _ in CLAIMS])
def test_claim_names_tests_that_exist(claim: str, tests: str) -> None:
    names = CODE.findall(tests)
    assert names
    for name in names:
        file, _, function = name.partition("::")
        assert Path(file).name.startswith("test_")
        content = (ROOT / file).read_text()
        assert re.search(rf"def {function or 'test_'}", content), name


def test_fields_are_those_of_the_code() -> None:
    by_effect = {True: set[str](), False: set[str]()}
    for fields, _, effect in rows("| Field | Reason | Effect |"):
        by_effect[effect.startswith("removed")] |= set(CODE.findall(fields))
    assert by_effect == {True: set(RESERVED_FIELDS), False: set(REFUSED_FIELDS)}
