"""Random faults during the soak benchmark, as by `hpc-dynamo chaos`."""

import asyncio
import random
import time
from collections.abc import Sequence
from signal import Signals

from benchmarks.soak.results import InjectedFault
from hpc_dynamo.cli.chaos.processes import RunProcesses
from hpc_dynamo.cli.chaos.schedule import Fault, ProcessKind, schedule
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.run import Attempt


class FaultLoop:
    """Injects a random fault at each interval and appends it to `injected`.

    The seed gives the kinds and moments. The processes are those that run at the moment.
    """

    def __init__(
        self,
        attempt: Attempt,
        seed: int,
        interval_s: float,
        kinds: Sequence[ProcessKind],
        injected: list[InjectedFault],
    ) -> None:
        self._processes = RunProcesses(attempt)
        self._chance, self._interval_s = random.Random(seed), interval_s
        self._kinds, self._injected = kinds, injected

    async def run(self) -> None:
        """Inject faults until cancelled, also in the middle of a SIGSTOP, which is undone."""
        began = due = time.monotonic()
        while True:
            due = max(due, time.monotonic()) + self._interval_s * self._chance.uniform(0.8, 1.2)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            faults = self._draw()
            error = await self._inject(faults[0]) if faults else "no such process is ready"
            what = str(faults[0]) if faults else "-"
            self._injected.append(InjectedFault(time.monotonic() - began, what, error))

    def _draw(self) -> tuple[Fault, ...]:
        found = [p for p in self._processes.find() if p.target in self._kinds]
        return schedule(self._chance.randrange(2**32), found, 1) if found else ()

    async def _inject(self, fault: Fault) -> str:
        """Inject a fault and wait for its end; return why it was not possible, or nothing."""
        number = Signals.SIGSTOP if fault.stop_s else Signals.SIGKILL
        try:
            await asyncio.to_thread(self._processes.signal, fault.process, number)
        except LaunchError as e:
            return e.message
        try:
            await asyncio.sleep(fault.stop_s)
        finally:
            if fault.stop_s:
                self._resume(fault)
        return ""

    def _resume(self, fault: Fault) -> None:
        try:
            self._processes.signal(fault.process, Signals.SIGCONT)
        except LaunchError:  # it was killed and restarted since
            return
