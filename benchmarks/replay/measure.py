"""Measures one system with the whole load."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.processes import cores_busy_s, cpu_s
from benchmarks.replay.load import Seen, replay
from benchmarks.replay.results import Label, Noise, Run, Targets, summary
from benchmarks.replay.targets import Start
from benchmarks.replay.trace import Request, Scale
from hpc_dynamo.config import TopologyKind
from hpc_dynamo.http import HttpClient


class Load:
    """The load of all systems. Request bodies are created before the measurement."""

    def __init__(self, requests: Sequence[Request], scale: Scale, targets: Targets) -> None:
        self.requests, self.scale, self.targets = requests, scale, targets
        self.bodies = [request.body() for request in requests]


async def measure(
    start: Start, label: Label, load: Load, folder: Path, done: Callable[[Seen], None]
) -> Run:
    """Start a system, send the load, and stop the system.

    Raises HpcDynamoError if it does not start; requests that fail are counted.
    """
    async with start(folder, TopologyKind(label.topology)) as running:
        before, mark = await running.prefix(0), Mark.now(running.pids)
        async with HttpClient.bearer(running.key or "none") as http:
            seen = await replay(http, running.url, load.requests, load.bodies, done)
        noise, asked = mark.noise(running.pids), sum(s.prompt for s in seen if not s.error)
        after = await running.prefix(asked)
    prefix = after - before if after and before else after
    return summary(label, seen, load.scale, load.targets, prefix, noise)


@dataclass(frozen=True)
class Mark:
    """CPU times at one moment: wall clock, the system, this program, all cores."""

    wall_s: float
    system_s: float
    client_s: float
    busy_s: float

    @classmethod
    def now(cls, pids: Sequence[int]) -> "Mark":
        return cls(time.perf_counter(), cpu_s(pids), time.process_time(), cores_busy_s())

    def noise(self, pids: Sequence[int]) -> Noise:
        """Return the CPU times used since."""
        now = Mark.now(pids)
        wall_s, client_s = now.wall_s - self.wall_s, now.client_s - self.client_s
        system_s = now.system_s - self.system_s
        others_s = max(0.0, now.busy_s - self.busy_s - system_s - client_s)
        return Noise(wall_s, system_s, client_s, others_s / wall_s)
