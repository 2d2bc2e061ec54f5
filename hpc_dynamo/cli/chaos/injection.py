"""Injection of a schedule of faults, and the recovery after each."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from signal import Signals

from hpc_dynamo.cli.chaos.probe import Probe
from hpc_dynamo.cli.chaos.processes import RunProcesses
from hpc_dynamo.cli.chaos.schedule import Fault, Process
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.messages import WorkerState
from hpc_dynamo.run import Attempt

POLL_S = 0.1
RECOVERY_S = 120.0  # limit for the recovery, added to the interval


@dataclass(frozen=True)
class Recovery:
    """Effect of one fault. None: no recovery within `RECOVERY_S` after the interval."""

    fault: Fault
    error: str = ""  # why it was not injected
    answered_after_s: float | None = None  # time to the first answer to a new request
    ready_after_s: float | None = None  # time to the state in which all workers are ready
    lost: int = 0  # requests that failed


class FaultInjection:
    """Injects faults one after another. `undo` ends all SIGSTOPs, also after Ctrl-C."""

    def __init__(self, attempt: Attempt, processes: RunProcesses, probe: Probe) -> None:
        self._attempt, self._processes, self._probe = attempt, processes, probe
        self._stopped = list[Process]()
        self._workers = self._ready_workers()

    def run(
        self, faults: Iterable[Fault], interval_s: float, report: Callable[[Recovery], object]
    ) -> None:
        """Inject each fault and report what follows in `interval_s`, after the end of a SIGSTOP."""
        for fault in faults:
            if self._attempt.outcome():  # the run has ended
                return
            report(self._observe(fault, interval_s))

    def undo(self) -> None:
        """Resume all stopped processes."""
        while self._stopped:
            with suppress(LaunchError):  # it was killed since
                self._processes.signal(self._stopped.pop(), Signals.SIGCONT)

    def _observe(self, fault: Fault, interval_s: float) -> Recovery:
        began, known = time.monotonic(), len(self._probe.results)
        try:
            self._inject(fault)
        except LaunchError as e:
            return Recovery(fault, error=e.message)
        answered: float | None = None
        ready: float | None = None
        failing = False
        end = fault.stop_s + interval_s
        while (now := time.monotonic() - began) < end or self._stopped:
            if self._stopped and now >= fault.stop_s:
                self.undo()
            all_ready = self._ready_workers() >= self._workers
            failing = failing or not all_ready
            ready = now if failing and all_ready and ready is None else ready
            answered = answered or self._probe.answered_after(began)
            if (answered is None or (failing and ready is None)) and not self._attempt.outcome():
                end = min(max(end, now + 2 * POLL_S), fault.stop_s + interval_s + RECOVERY_S)
            time.sleep(POLL_S)
        results = self._probe.results[known:]
        return Recovery(
            fault,
            answered_after_s=answered - began if answered else None,
            ready_after_s=ready if failing else 0.0,
            lost=sum(bool(result.error) for result in results),
        )

    def _inject(self, fault: Fault) -> None:
        if fault.stop_s:
            self._stopped.append(fault.process)
        number = Signals.SIGSTOP if fault.stop_s else Signals.SIGKILL
        if not self._processes.signal(fault.process, number):
            self._stopped.clear()
            raise LaunchError(f"{fault.process} has no process now")

    def _ready_workers(self) -> int:
        status = self._attempt.status()
        return sum(w.state is WorkerState.ready for w in status.workers) if status else 0
