"""Requests as series with one value per interval."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_dynamo.errors import InputError

HOUR_S = 3600.0
HOURS = 4  # duration of the synthetic load
SPREAD = 0.8  # standard deviation of the logarithm of lengths


@dataclass(frozen=True)
class Arrival:
    """A request: arrival time, prompt tokens and response tokens."""

    at_s: float
    prompt: float
    answer: float


@dataclass(frozen=True)
class Series:
    """A value and a weight for each interval."""

    workload: str
    interval_s: int
    what: str
    values: list[float]
    weights: list[float]


def trace(file: Path) -> list[Arrival]:
    """Read Mooncake's JSON lines (FAST '25). Raises InputError."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return [Arrival(r["timestamp"] / 1e3, r["input_length"], r["output_length"]) for r in rows]
    except (OSError, ValueError, KeyError) as e:
        raise InputError(f"no trace at {file}: {e!r}", hint="--trace FILE names one") from e


def swing(seed: int = 1) -> list[Arrival]:
    """Return Poisson arrivals at 1 to 5 per second and back once per hour.

    While the rate rises, prompts are four times as long as while it falls, and responses a quarter.
    """
    draw, at, found = random.Random(seed), 0.0, list[Arrival]()
    while at < HOURS * HOUR_S:
        phase = math.tau * at / HOUR_S
        at += draw.expovariate(3 - 2 * math.cos(phase))
        turn = 2 ** math.sin(phase)  # 1/2 to 2
        prompt, answer = (draw.lognormvariate(0.0, SPREAD) for _ in range(2))
        found.append(Arrival(at, 4000 * turn * prompt, 300 / turn * answer))
    return found


def series(workload: str, arrivals: list[Arrival], interval_s: int) -> Iterator[Series]:
    """Yield rate and lengths; the last, incomplete interval is skipped."""
    parts: list[list[Arrival]] = [
        [] for _ in range(int(max(a.at_s for a in arrivals) // interval_s) + 1)
    ]
    for arrival in arrivals:
        parts[int(arrival.at_s // interval_s)].append(arrival)
    parts.pop()
    rates = [len(part) / interval_s for part in parts]
    yield Series(workload, interval_s, "rate", rates, [1.0] * len(parts))
    full = [part for part in parts if part]  # intervals with lengths
    counts = [float(len(part)) for part in full]
    prompts = [sum(a.prompt for a in part) / len(part) for part in full]
    answers = [sum(a.answer for a in part) / len(part) for part in full]
    yield Series(workload, interval_s, "prompt", prompts, counts)
    yield Series(workload, interval_s, "answer", answers, counts)
