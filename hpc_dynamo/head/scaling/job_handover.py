"""A serving job hands over to the next: it asks for one in time and watches it until its own end.

New requests go there while it is ready, and stay here while it is not.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from msgspec.structs import replace

from hpc_dynamo import launch
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.http import HttpClient, pinned_tls_context
from hpc_dynamo.launch import detached_submit
from hpc_dynamo.launch.node import is_requeued
from hpc_dynamo.messages import Outcome, Successor
from hpc_dynamo.run import Attempt

MARGIN = 2.0  # queues have grown since, disks are slower
LOOK_S = 1.0
ANSWER_S = 2.0
SILENT_S = 10.0  # since its last answer: what it has not answered by then is given up
QUEUE_S = 10.0  # between two questions to the scheduler, which many ask
RETRY_S = 30.0  # until a job is asked for again that could not be submitted

log = logging.getLogger(__name__)


def lead_time_s(took_s: float, least_s: float) -> float:
    """How long before it must serve a successor is asked for, when the job before took `took_s`
    from its own submission: in the queue, and to start its engines."""
    return max(least_s, MARGIN * took_s)


class JobHandover:
    """Of one attempt. `changed` is called when `successor` is another."""

    def __init__(self, attempt: Attempt, changed: Callable[[], object]) -> None:
        self._attempt, self._changed = attempt, changed
        self._config = attempt.config()
        self._heard_at = self._queue_at = 0.0
        self._ended = False  # the successor has, before us
        self.successor: Successor | None = None

    async def run(self, serving: Callable[[], bool], spare_s: Callable[[], float]) -> None:
        """Until cancelled. `spare_s`: until another job must serve."""
        await self._due(serving, spare_s)
        after = await self._ask()
        cert = self._config.serve.tls_cert
        async with HttpClient(tls=pinned_tls_context(cert) if cert else None) as client:
            while True:
                self._show(await self._look(after, client))
                await asyncio.sleep(LOOK_S)

    def final_outcome(self, outcome: Outcome) -> Outcome:
        """Our outcome, with the attempt that goes on if there is one; clients look there now, also
        where it did not answer just then."""
        if self.successor is None or not self.successor.attempt or self._ended:
            return outcome
        if self.successor.url:
            self._attempt.run.publish_url(self.successor.url)
        number = self.successor.attempt
        message = f"{outcome.message}; attempt {number} goes on"
        return replace(outcome, message=message, next_attempt=number)

    async def _due(self, serving: Callable[[], bool], spare_s: Callable[[], float]) -> None:
        """A job that never served waits for ever: it would be followed by others like it."""
        lead: float | None = None
        while lead is None or spare_s() > lead:
            await asyncio.sleep(LOOK_S)
            if lead is None and serving():
                lead = lead_time_s(self._took_s(), self._config.planner.job_handover_lead_s)
                log.info("a successor is asked for %.0f s before it must serve", lead)

    def _took_s(self) -> float:
        """From our submission until now; of a job that was requeued, from its present start."""
        job = self._attempt.job()
        asked_at = [node.started_at for node in self._attempt.nodes()]
        if job and not is_requeued():
            asked_at = [job.submitted_at]
        return max(time.time() - min(asked_at), 0.0)

    async def _ask(self) -> Attempt:
        """The attempt of a submitted job."""
        while True:
            try:
                return await self._submit()
            except HpcDynamoError as e:
                log.error("no successor: %s", e)
                self._show(Successor(attempt=0, job_id="", detail=str(e)))
            await asyncio.sleep(RETRY_S)

    async def _submit(self) -> Attempt:
        """Not left half done: the outcome must name a job that was asked for."""
        asking = asyncio.create_task(
            asyncio.to_thread(detached_submit.submit_next_attempt, self._attempt)
        )
        try:
            after = await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._submitted(await asking)
            raise
        self._submitted(after)
        return after

    def _submitted(self, after: Attempt) -> None:
        job = after.job()
        log.info("attempt %d is to take over: job %s", after.number, job.job_id if job else "?")
        job_id = job.job_id if job else ""
        self._show(Successor(attempt=after.number, job_id=job_id, detail="submitted"))

    async def _look(self, after: Attempt, client: HttpClient) -> Successor:
        """How the successor is now."""
        known = self.successor
        assert known
        try:
            outcome = await asyncio.to_thread(after.outcome)
            endpoint = await asyncio.to_thread(after.endpoint)
            if outcome:
                self._ended = True
                ended = f"it has ended: {outcome.message}"
                return replace(known, url="", ready=False, detail=ended)
            if endpoint is None:
                return replace(known, url="", ready=False, detail=await self._waits(after))
        except (OSError, HpcDynamoError) as e:
            return replace(known, ready=False, detail=str(e))
        return await self._probe(replace(known, url=endpoint.url), client)

    async def _waits(self, after: Attempt) -> str:
        """What it is waiting for."""
        status = await asyncio.to_thread(after.status)
        if status:
            return status.phase
        assert self.successor
        if time.monotonic() - self._queue_at < QUEUE_S:
            return self.successor.detail
        self._queue_at = time.monotonic()
        job = launch.find_job(after)
        state, detail = await asyncio.to_thread(job.state) if job else ("", "")
        return f"{state}, {detail}"

    async def _probe(self, seen: Successor, client: HttpClient) -> Successor:
        try:
            async with asyncio.timeout(ANSWER_S), client.send("GET", seen.url, "/ready") as answer:
                await answer.read()
            self._heard_at = time.monotonic()
            if answer.status == 200:
                return replace(seen, ready=True, detail="it takes new requests")
            return replace(seen, ready=False, detail="it cannot serve just now")
        except OSError as e:
            detail = f"{seen.url} does not answer: {e or type(e).__name__}"
        silent = time.monotonic() - self._heard_at > SILENT_S
        return replace(seen, url="" if silent else seen.url, ready=False, detail=detail)

    def _show(self, now: Successor) -> None:
        before, self.successor = self.successor, now
        if now == before:
            return
        log.info("attempt %d: %s", now.attempt, now.detail)
        if now.ready != (before is not None and before.ready):
            self._tell_clients(now)
        self._changed()

    def _tell_clients(self, now: Successor) -> None:
        own = self._attempt.endpoint()
        if now.ready or own:
            self._attempt.run.publish_url(now.url if now.ready or not own else own.url)
