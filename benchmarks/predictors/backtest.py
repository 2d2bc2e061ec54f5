"""Predicts a series one step ahead. Dynamo's environment imports it: standard library only."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Predictions:
    """One prediction for each value, made before the value was added."""

    values: list[float]
    seconds: float  # total time for all values


def backtest(
    values: list[float], observe: Callable[[float], None], predict: Callable[[], float]
) -> Predictions:
    predictions, began = list[float](), time.perf_counter()
    for value in values:
        predictions.append(predict())
        observe(value)
    return Predictions(predictions, time.perf_counter() - began)
