"""A grid of overrides: each combination is a system to measure."""

from collections.abc import Sequence
from itertools import product

from hpc_dynamo.errors import UsageError


def grid(axes: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the overrides of each cell.

    `["a=1,2", "b=3"]` gives `("a=1", "b=3")` and `("a=2", "b=3")`. Raises UsageError for an
    argument that is not FIELD=VALUE,….
    """
    return list(product(*map(_axis, axes)))


def _axis(axis: str) -> list[str]:
    field, sign, values = axis.partition("=")
    if not (field and sign and all(values.split(","))):
        hint = "FIELD=VALUE,VALUE such as router.overlap_weight=1,2"
        raise UsageError(f"--sweep {axis!r} is no row of values", hint=hint)
    return [f"{field}={value}" for value in values.split(",")]
