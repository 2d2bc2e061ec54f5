"""Requests as series: one value an interval."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_dynamo.errors import InputError

HOUR_S = 3600.0
HOURS = 4  # of the load that swings
SPREAD = 0.8  # of the logarithm of lengths


@dataclass(frozen=True)
class Ask:
    """A request: when it comes, tokens of its prompt and its answer."""

    at_s: float
    prompt: float
    answer: float


@dataclass(frozen=True)
class Series:
    """One value for each interval, and how much each counts."""

    workload: str
    interval_s: int
    what: str
    values: list[float]
    weights: list[float]


def trace(file: Path) -> list[Ask]:
    """Of Mooncake's JSON lines (FAST '25). Raises InputError."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return [Ask(r["timestamp"] / 1e3, r["input_length"], r["output_length"]) for r in rows]
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"no trace at {file}: {e!r}", hint="--trace FILE names one") from e


def swing(seed: int = 1) -> list[Ask]:
    """Poisson arrivals at 1 to 5 a second and back every hour; while they rise, prompts are four
    times as long as when they fall, and answers a quarter."""
    draw, at, found = random.Random(seed), 0.0, list[Ask]()
    while at < HOURS * HOUR_S:
        phase = math.tau * at / HOUR_S
        at += draw.expovariate(3 - 2 * math.cos(phase))
        turn = 2 ** math.sin(phase)  # 1/2 to 2
        prompt, answer = (draw.lognormvariate(0.0, SPREAD) for _ in range(2))
        found.append(Ask(at, 4000 * turn * prompt, 300 / turn * answer))
    return found


def series(workload: str, asks: list[Ask], interval_s: int) -> Iterator[Series]:
    """Rate and lengths. The last interval, which is cut off, is left out."""
    parts: list[list[Ask]] = [[] for _ in range(int(max(a.at_s for a in asks) // interval_s) + 1)]
    for ask in asks:
        parts[int(ask.at_s // interval_s)].append(ask)
    parts.pop()
    rates = [len(part) / interval_s for part in parts]
    yield Series(workload, interval_s, "rate", rates, [1.0] * len(parts))
    full = [part for part in parts if part]  # without requests there is no length to predict
    counts = [float(len(part)) for part in full]
    prompts = [sum(a.prompt for a in part) / len(part) for part in full]
    answers = [sum(a.answer for a in part) / len(part) for part in full]
    yield Series(workload, interval_s, "prompt", prompts, counts)
    yield Series(workload, interval_s, "answer", answers, counts)
