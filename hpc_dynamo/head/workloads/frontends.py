"""Counts of a job's frontend processes, including those that have exited."""

import asyncio
import math
from collections import Counter

import msgspec

from hpc_dynamo.frontend.stats import REPORT_INTERVAL_S, FrontendReport, FrontendStats


class FrontendTotals:
    """Sums of the reports of frontend processes. Their numbers are not used again."""

    def __init__(self) -> None:
        self._reports = dict[int, FrontendReport]()  # last report of each running frontend
        self._report_counts = Counter[int]()
        self._alive = set[int]()  # indexes of the processes with a report since the last look
        self._exited = FrontendReport()  # sum over frontends that have exited
        self._changed = asyncio.Event()

    def update(self, frontend: int, content: bytes) -> None:
        """Store a report: what a frontend has counted since its start, as MessagePack."""
        report = msgspec.msgpack.decode(content, type=FrontendReport)
        self._reports[frontend] = report
        self._report_counts[frontend] += 1
        self._alive.add(report.index)
        self._changed.set()

    def frontend_exited(self, frontend: int) -> None:
        """Add the last report of a frontend to the sum of those that have exited."""
        if frontend in self._reports:
            self._exited.add(self._reports.pop(frontend).after_exit())
            self._changed.set()

    async def wait_for_first_report(self) -> None:
        """Wait until a frontend has sent a report."""
        await self._changed.wait()

    async def wait_for_forwarded(self) -> None:
        """Wait until all requests that were forwarded to the next job have been answered.

        A frontend's next report may be older than the end of forwarding, so two are needed.
        """
        reports = self._report_counts = Counter[int]()
        while any(reports[n] < 2 or report.forwarding for n, report in self._reports.items()):
            self._changed.clear()
            await self._changed.wait()

    async def wait_until_silent(self, index: int, timeout_s: float) -> None:
        """Wait until a process has reported at least once, and then not for `timeout_s`.

        Time that this process was stopped itself does not count.
        """
        self._alive.discard(index)
        silent_s = -math.inf
        while silent_s < timeout_s:
            await asyncio.sleep(REPORT_INTERVAL_S)
            silent_s = 0.0 if index in self._alive else silent_s + REPORT_INTERVAL_S
            self._alive.discard(index)

    def by_model(self) -> dict[str, FrontendStats]:
        """Return the counts by model; the empty name has those without a model."""
        total = FrontendReport()
        for report in (self._exited, *self._reports.values()):
            total.add(report)
        return total.by_model

    def notices(self) -> tuple[str, ...]:
        """Return the notices of the frontends for users, one sentence each."""
        total = FrontendReport()
        for report in self._reports.values():
            total.add(report)
        texts = total.notices.items()
        return tuple(f"{model}: {text}" if model else text for model, text in texts)

    def total(self) -> FrontendStats:
        total = FrontendStats()
        for stats in self.by_model().values():
            total.add(stats)
        return total
