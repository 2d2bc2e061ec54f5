"""Consecutive engine steps between two events, with linearly growing durations."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepRun:
    """`steps` steps from `started_at`; each takes `increment_s` longer than the one before.

    Each step computes `chunk` tokens of the first prompt. A single step may instead compute
    `chunks` of several prompts.
    """

    started_at: float
    steps: int
    first_s: float
    increment_s: float
    chunk: int = 0
    chunks: tuple[int, ...] = ()

    def end_of(self, steps: int) -> float:
        """Return the time at which this many steps have ended."""
        return self.started_at + steps * self.first_s + self.increment_s * steps * (steps - 1) / 2

    def current_step(self, now: float) -> int:
        """Return the number of the current step, from 1."""
        elapsed, half = now - self.started_at, self.increment_s / 2
        if half:  # half * n^2 + (first - half) * n = elapsed
            b = self.first_s - half
            done = (math.sqrt(b * b + 4 * half * elapsed) - b) / (2 * half)
        else:
            done = elapsed / self.first_s if self.first_s else 0.0
        step = min(max(int(done), 0), self.steps - 1)
        while step and self.end_of(step) > now:
            step -= 1
        while step + 1 < self.steps and self.end_of(step + 1) <= now:
            step += 1
        return step + 1
