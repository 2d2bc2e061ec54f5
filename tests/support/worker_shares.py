"""Order of tests for parallel workers: each begins with a share of the tests that wait.

`--dist worksteal` gives each worker an equal part of the list, and an idle worker takes over from
the end of another's part. In the order of their files, all tests of tests/faults and
tests/integration are in the first part and end last. They start processes and wait for them, so
the cores would be idle at the end, when no test that computes is left.
"""

from collections.abc import Sequence
from itertools import chain, groupby, islice

COMPUTING = "tests/unit/"


def file_of(test: str) -> str:
    return test.partition("::")[0]


def in_shares(tests: Sequence[str], workers: int) -> list[str]:
    """Return the tests in an order whose `workers` equal parts begin with tests that wait.

    Tests of one file stay together, since they share servers.
    """
    computing = (test for test in tests if test.startswith(COMPUTING))
    waiting = (test for test in tests if not test.startswith(COMPUTING))
    files = [list(group) for _, group in groupby(waiting, file_of)]
    parts = [list(chain.from_iterable(files[n::workers])) for n in range(workers)]
    left = len(tests)
    for n, part in enumerate(parts):
        size = left // (workers - n)  # as worksteal does it
        part += islice(computing, max(0, size - len(part)))
        left -= len(part)
    return [*chain.from_iterable(parts), *computing]
