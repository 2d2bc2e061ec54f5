"""The serving job, looked at from outside."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from benchmarks.common.processes import ProcessExited, cores_busy_s, cpu_s, with_descendants
from benchmarks.common.serving import serving
from benchmarks.common.workload import MODEL
from benchmarks.soak.results import ProcessUsage, nonzero_gauges
from hpc_dynamo.http import HttpClient

LOOK_S = 10.0
LAG_S = 4.5  # until what engines say of themselves is on the job's page
# Servers close a connection that was idle for 75 s, engines free what nobody fetched for 120 s.
IDLE_S = 150.0
NAME = "soak"
WORDS = (
    *("engine=simulator", "topology=disaggregated", "engine.args.timing=instant"),
    f"model.name={MODEL}",
    "router.index_capacity_blocks=20000",  # full before growth is looked for
)
NUMBER = re.compile(r'^hpc_dynamo_(\w+?)(?:\{.*role="(\w+)".*\})? ([\d.e+-]+)$', re.M)
TRAFFIC = ("active", "queued", "connections", "cancelled_total", "retried_total", "refused_total")
WORKER = ("worker_active", "worker_running", "worker_waiting", "worker_kv_usage")


class SoakJob:
    """The serving job, seen from outside."""

    def __init__(self, pid: int, url: str, key: str, looking: HttpClient) -> None:
        self._pid, self.url, self.key, self._looking = pid, url, key, looking

    async def gauges(self) -> dict[str, float]:
        """Of the job's metrics page, those of workers by role. Our own look is not counted.

        Raises Ended where the job does not answer.
        """
        try:
            async with asyncio.timeout(LOOK_S):
                async with self._looking.send("GET", self.url, "/metrics") as answer:
                    rows = NUMBER.findall((await answer.read()).decode())
        except OSError as e:  # TimeoutError is one
            raise ProcessExited(f"the job's metrics: {e or type(e).__name__}") from e
        found = {f"{role} {name}".strip(): float(value) for name, role, value in rows}
        own = {name: v for name, v in found.items() if name.split()[-1] in TRAFFIC + WORKER}
        return own | {"connections": max(0.0, own.get("connections", 0.0) - 1)}

    def processes(self) -> dict[str, ProcessUsage]:
        """By what they do; one that just ends is left out."""
        found = {}
        for pid in sorted(with_descendants([self._pid])):
            with suppress(OSError, KeyError):  # a zombie has no memory to tell of
                if name := _name(pid):
                    found[name] = _process(pid)
        return found

    def other_programs_s(self) -> float:
        """CPU seconds of our cores that went neither to the job nor to us, since boot."""
        return cores_busy_s() - cpu_s([self._pid]) - time.process_time()

    async def wait_until_idle(
        self, start: dict[str, ProcessUsage]
    ) -> tuple[dict[str, float], dict[str, ProcessUsage]]:
        """The job when all is given back, or what it still holds after IDLE_S."""
        deadline = time.monotonic() + IDLE_S
        await asyncio.sleep(LAG_S)
        while True:
            gauges, now = await self.gauges(), self.processes()
            over = not nonzero_gauges(gauges) and all(
                n in now and now[n].fds <= p.fds for n, p in start.items()
            )
            if over or time.monotonic() > deadline:
                return gauges, now
            await asyncio.sleep(1)  # a page is looked at, and /proc


def _name(pid: int) -> str:
    """What a process of a job does; empty for those that only watch over others."""
    match Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
        case [_, "-m", "hpc_dynamo.frontend", _, index, *_]:
            return f"frontend {index}"
        case [_, "-m", "hpc_dynamo.simulator", *rest]:
            return rest[rest.index("--role") + 1]
        case [_, "-u", "-m", "submitit.core._submit", *_]:
            return "head"
    return ""


def _process(pid: int) -> ProcessUsage:
    proc = Path(f"/proc/{pid}")
    rows = (proc / "status").read_text() + (proc / "smaps_rollup").read_text()
    value = {k: int(n) for k, n in re.findall(r"^(VmRSS|Pss|Threads):\s+(\d+)", rows, re.M)}
    fds = len(list((proc / "fd").iterdir()))
    return ProcessUsage(pid, value["VmRSS"] / 1024, value["Pss"] / 1024, fds, value["Threads"])


@asynccontextmanager
async def start(folder: Path, model: Path, words: Sequence[str]) -> AsyncIterator[SoakJob]:
    """The job from its endpoint's announcement to Ctrl-C; see benchmarks.common.serving."""
    async with serving(folder, NAME, model, (*WORDS, *words)) as served:
        key = served.run.api_key()
        async with HttpClient.bearer(key) as looking:
            yield SoakJob(served.pid, served.url, key, looking)
