"""An endpoint goes on after its walltime: a successor job takes over before the end.

The successor is submitted so early that it should be ready when this job begins to drain: twice
the time that this job itself took from its submission to its endpoint. As soon as it serves, this
job's frontends pass new requests on to it, so that clients need not know; what is under way ends
here. Shortly before the end even that stops, and refusals name the new endpoint. A successor that
dies, or waits in the queue for too long, is no harm: this job serves by itself, and drains.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.http import Client
from hpc_dynamo.http.trust import trusting
from hpc_dynamo.launch import successor
from hpc_dynamo.messages import Endpoint
from hpc_dynamo.run import Attempt

LOOK_S = 0.5  # at the successor's files, which have no events across nodes
LEAST_S = 30.0  # before the drain, however quickly this job started
TIMES = 2.0  # the time that this job took to start
AGAIN_S = 30.0  # after a submission that was refused
ANSWER_S = 3.0
SPARE_S = 5.0  # passed on no longer than a likely request and so much before the end
MISSED = 3  # looks in a row without an answer: it is gone

log = logging.getLogger(__name__)


def lead_s(start_s: float, walltime_s: float) -> float:
    """How long before the drain a successor is submitted; at most half of a walltime."""
    return min(max(LEAST_S, TIMES * start_s), walltime_s / 2)


class Handover:
    """Of one attempt. `spare_s` tells the time until its drain, `left_s` until its end, and
    `likely_s` what a request will hardly exceed; `changed` is called on every change."""

    def __init__(
        self,
        attempt: Attempt,
        spare_s: Callable[[], float],
        left_s: Callable[[], float],
        likely_s: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._attempt, self._changed = attempt, changed
        self._spare_s, self._left_s, self._likely_s = spare_s, left_s, likely_s
        self._started, self._hurry = asyncio.Event(), asyncio.Event()
        self.successor: Attempt | None = None
        self._endpoint: Endpoint | None = None

    @property
    def moved(self) -> str:
        """Base URL, without /v1, of the successor once it serves; else empty."""
        return self._endpoint.url.removesuffix("/v1") if self._endpoint else ""

    @property
    def forward(self) -> str:
        """As `moved`, while a request that is passed on now would still end in time."""
        return self.moved if self._left_s() > self._likely_s() + SPARE_S else ""

    @property
    def phase(self) -> str:
        """What there is to say of it; empty before anything is done."""
        if self.successor is None:
            return ""
        name = f"attempt {self.successor.number}"
        return f"handed over to {name}" if self.moved else f"{name} is to follow"

    def started(self) -> None:
        """This job's endpoint is there."""
        self._started.set()

    def hurry(self) -> None:
        """The job ends sooner than its walltime."""
        self._hurry.set()

    async def run(self) -> None:
        """Until cancelled."""
        await self._started.wait()
        job = self._attempt.job()
        if job is None or job.launcher != "slurm":
            log.warning("planner.handover=true needs a job that we submitted to Slurm")
            return
        start_s = time.time() - job.submitted_at
        await self._until_due(lead_s(start_s, start_s + self._left_s()))
        self.successor = await self._submit()
        self._changed()
        async with Client(tls=trusting(self._attempt.config().serve.tls_cert)) as client:
            missed = 0
            while True:
                missed = 0 if await self._serves(client, self.successor) else missed + 1
                self._know(self.successor.endpoint() if not missed else None, missed)
                await asyncio.sleep(LOOK_S)

    def _know(self, endpoint: Endpoint | None, missed: int) -> None:
        if endpoint is None and missed < MISSED:
            return
        if (endpoint is None) != (self._endpoint is None):
            self._endpoint = endpoint
            where = f"serves at {endpoint.url}" if endpoint else "does not serve any more"
            log.info("the successor %s", where)
            self._changed()

    async def _until_due(self, lead: float) -> None:
        while self._spare_s() > lead:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._hurry.wait()
                    return

    async def _submit(self) -> Attempt:
        while True:
            try:
                found = await asyncio.to_thread(successor.submit, self._attempt)
            except HpcDynamoError as e:
                log.warning("%s", e)
                await asyncio.sleep(AGAIN_S)
            else:
                log.info("attempt %d is submitted to go on after this job", found.number)
                return found

    async def _serves(self, client: Client, attempt: Attempt) -> bool:
        endpoint = attempt.endpoint()
        if endpoint is None or attempt.outcome():
            return False
        try:
            async with asyncio.timeout(ANSWER_S):
                async with client.send("GET", endpoint.url.removesuffix("/v1"), "/ready") as answer:
                    await answer.read()
                    return answer.status == 200
        except (OSError, TimeoutError):
            return False
