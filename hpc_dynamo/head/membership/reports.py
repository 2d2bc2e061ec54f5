"""Subscriptions to the reports of all workers."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from hpc_dynamo.messages import WorkerReport

Reports = asyncio.Queue[WorkerReport]


class ReportSubscriptions:
    """Passes on each report to all queues that are subscribed."""

    def __init__(self) -> None:
        self._subscribers = set[Reports]()

    @contextmanager
    def subscribe(self) -> Iterator[Reports]:
        """Yield a queue of all worker reports received while the context is open."""
        reports = Reports()
        self._subscribers.add(reports)
        try:
            yield reports
        finally:
            self._subscribers.discard(reports)

    def publish(self, report: WorkerReport) -> None:
        for reports in self._subscribers:
            reports.put_nowait(report)
