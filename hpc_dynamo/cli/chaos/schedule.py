"""Schedule of faults for a run. Pure: the same seed and layout give the same schedule."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

STOP_S = (5.0, 25.0)  # shortest and longest SIGSTOP


class ProcessKind(StrEnum):
    """Kind of process."""

    engine = "engine"
    frontend = "frontend"
    agent = "agent"
    head = "head"


@dataclass(frozen=True)
class Process:
    """Process of a run: the engine of a rank, a frontend by its index, an agent by its node."""

    target: ProcessKind
    index: int
    host: str

    def __str__(self) -> str:
        return f"{self.target} {self.index} on {self.host}"


@dataclass(frozen=True)
class Fault:
    """Fault of one process. `stop_s` is the duration of a SIGSTOP; 0: SIGKILL."""

    process: Process
    stop_s: float

    def __str__(self) -> str:
        action = f"SIGSTOP for {self.stop_s:.0f} s" if self.stop_s else "SIGKILL"
        return f"{action}: {self.process}"


def schedule(seed: int, processes: Sequence[Process], count: int) -> tuple[Fault, ...]:
    """Return `count` faults of random processes. All kinds of processes are equally likely."""
    chance = random.Random(seed)
    kinds = sorted({process.target for process in processes})
    faults = list[Fault]()
    for _ in range(count):
        kind = chance.choice(kinds)
        process = chance.choice([p for p in processes if p.target is kind])
        stop_s = round(chance.uniform(*STOP_S)) if chance.random() < 0.5 else 0.0
        faults.append(Fault(process, stop_s))
    return tuple(faults)
