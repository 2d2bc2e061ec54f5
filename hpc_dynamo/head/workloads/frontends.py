"""What the frontends of a job have counted, also those that are gone."""

import asyncio
from collections import Counter

import msgspec

from hpc_dynamo.frontend.stats import FrontendReport, FrontendStats


class FrontendTotals:
    """A frontend is a number that is not used again."""

    def __init__(self) -> None:
        self._told = dict[int, FrontendReport]()  # by those that are there
        self._words = Counter[int]()  # of each
        self._former = FrontendReport()  # of those that are gone
        self._came = asyncio.Event()

    def update(self, frontend: int, content: bytes) -> None:
        """The figures of one since its start."""
        self._told[frontend] = msgspec.msgpack.decode(content, type=FrontendReport)
        self._words[frontend] += 1
        self._came.set()

    def frontend_exited(self, frontend: int) -> None:
        """One is gone, with what it had under way."""
        if frontend in self._told:
            self._former.add(self._told.pop(frontend).after_exit())
            self._came.set()

    async def wait_for_first_report(self) -> None:
        """Until one has told something."""
        await self._came.wait()

    async def wait_for_forwarded(self) -> None:
        """Until what was passed on has been answered. A frontend's first word since may have been
        under way before it knew that nothing more is to be."""
        words = self._words = Counter[int]()
        while any(words[n] < 2 or counted.forwarding for n, counted in self._told.items()):
            self._came.clear()
            await self._came.wait()

    def by_model(self) -> dict[str, FrontendStats]:
        """Of what is of no model, as connections are, under the empty name."""
        total = FrontendReport()
        for counted in (self._former, *self._told.values()):
            total.add(counted)
        return total.by_model

    def notices(self) -> tuple[str, ...]:
        """Return the notices of the frontends for users, one sentence each."""
        total = FrontendReport()
        for counted in self._told.values():
            total.add(counted)
        texts = total.notices.items()
        return tuple(f"{model}: {text}" if model else text for model, text in texts)

    def total(self) -> FrontendStats:
        total = FrontendStats()
        for stats in self.by_model().values():
            total.add(stats)
        return total
