"""Order of tests for parallel workers."""

from collections.abc import Iterator

import pytest

from tests.support.worker_shares import file_of, in_shares

WAITING = [f"tests/integration/test_{n}.py::test_{i}" for n in range(5) for i in range(3)]
COMPUTING = [f"tests/unit/test_{n}.py::test_{i}" for n in range(9) for i in range(7)]


def first_tests(ordered: list[str], workers: int) -> Iterator[str]:
    """Yield the test that each worker begins with, as `worksteal` deals them."""
    at = 0
    for remaining in range(workers, 0, -1):
        yield ordered[at]
        at += (len(ordered) - at) // remaining


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5, 8])
def test_each_share_begins_with_tests_that_wait(workers: int) -> None:
    ordered = in_shares(WAITING + COMPUTING, workers)
    assert sorted(ordered) == sorted(WAITING + COMPUTING)
    files = [file_of(test) for test in ordered if test in WAITING]
    assert len([f for at, f in enumerate(files) if files[at - 1] != f]) == 5, "files are split"
    begins = [test.startswith("tests/integration/") for test in first_tests(ordered, workers)]
    assert sum(begins) == min(workers, 5)


@pytest.mark.parametrize("tests", [WAITING, COMPUTING, [], WAITING[:1]])
def test_no_test_is_lost(tests: list[str]) -> None:
    assert sorted(in_shares(tests, 4)) == sorted(tests)
