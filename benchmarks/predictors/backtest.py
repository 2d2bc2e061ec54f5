"""One step ahead through a series. Both sides run it: it needs the standard library alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Guesses:
    """One prediction for each value of a series, made before it was seen."""

    values: list[float]
    seconds: float  # to take all of them in and predict, together


def walk(
    values: list[float], observe: Callable[[float], None], predict: Callable[[], float]
) -> Guesses:
    guesses, began = list[float](), time.perf_counter()
    for value in values:
        guesses.append(predict())
        observe(value)
    return Guesses(guesses, time.perf_counter() - began)
