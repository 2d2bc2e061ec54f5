"""Job handover: a serving job submits the next one in time, monitors it and forwards requests.

    this job (JobHandover)                   next job
      ── submit, lead time before the end ──▶  waits in the queue
      ◀── status.json ───────────────────────  starts its engines
      ◀── endpoint.json ─────────────────────  is ready
      ── GET /ready, every second ──────────▶  serves
      ── new requests, while ready ─────────▶

At its end the outcome names the next attempt, and clients find its URL in the run folder.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from msgspec.structs import replace

from hpc_dynamo import launch
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.http import MAX_REPORT_BYTES, HttpClient, pinned_tls_context
from hpc_dynamo.launch import next_attempt
from hpc_dynamo.launch.node import is_requeued
from hpc_dynamo.messages import Outcome, Successor
from hpc_dynamo.run import Attempt

LEAD_FACTOR = 2.0  # the next job may wait longer in the queue
POLL_S = 1.0
READY_TIMEOUT_S = 2.0
SILENT_S = 10.0  # without an answer, until requests forwarded to it are given up
QUEUE_POLL_S = 10.0  # the scheduler serves many users
RETRY_S = 30.0  # after a failed submission

log = logging.getLogger(__name__)


def lead_time_s(start_s: float, min_lead_s: float) -> float:
    """Return how long before it must serve the next job is submitted.

    `start_s` is the time that this job took from its submission to its endpoint.
    """
    return max(min_lead_s, LEAD_FACTOR * start_s)


class JobHandover:
    """Job handover of an attempt. `changed` is called when `successor` has changed."""

    def __init__(self, attempt: Attempt, changed: Callable[[], object]) -> None:
        self._attempt, self._changed = attempt, changed
        self._config = attempt.config()
        self._last_answer = self._last_queue_poll = 0.0
        self._successor_ended = False
        self.successor: Successor | None = None

    async def run(self, serving: Callable[[], bool], spare_s: Callable[[], float]) -> None:
        """Submit the next job in time, then monitor it until cancelled.

        `serving` returns True once this job serves, `spare_s` the time until the next job must
        serve.
        """
        attempt = await asyncio.to_thread(self._submitted_by_earlier_head)
        if attempt:
            self._set_submitted(attempt)
        else:
            await self._wait_until_due(serving, spare_s)
            attempt = await self._submit_until_accepted()
        cert = self._config.serve.tls_cert
        async with HttpClient(tls=pinned_tls_context(cert) if cert else None) as client:
            while True:
                self._set_successor(await self._poll(attempt, client))
                await asyncio.sleep(POLL_S)

    def final_outcome(self, outcome: Outcome) -> Outcome:
        """Return the outcome with the attempt that continues, and publish that attempt's URL.

        The URL is published even if the next job does not answer at the moment.
        """
        if self.successor is None or not self.successor.attempt or self._successor_ended:
            return outcome
        if self.successor.url:
            self._attempt.run.publish_url(self.successor.url)
        number = self.successor.attempt
        message = f"{outcome.message}; attempt {number} continues"
        return replace(outcome, message=message, next_attempt=number)

    async def _wait_until_due(
        self, serving: Callable[[], bool], spare_s: Callable[[], float]
    ) -> None:
        """Wait for the time of submission.

        A job that never serves waits without a limit: jobs after it would fail in the same way.
        """
        lead_s: float | None = None
        while lead_s is None or spare_s() > lead_s:
            await asyncio.sleep(POLL_S)
            if lead_s is None and serving():
                lead_s = lead_time_s(self._start_s(), self._config.planner.job_handover_lead_s)
                log.info("the next job is submitted %.0f s before it must serve", lead_s)

    def _start_s(self) -> float:
        """Return the time from the submission of this job, or its restart if requeued, to its
        endpoint."""
        job, endpoint = self._attempt.job(), self._attempt.endpoint()
        serving_since = endpoint.serving_since if endpoint else time.time()
        starts = [node.started_at for node in self._attempt.nodes()]
        if job and not is_requeued():
            starts = [job.submitted_at]
        return max(serving_since - min(starts), 0.0)

    def _submitted_by_earlier_head(self) -> Attempt | None:
        """Return the next job if a head of this job that has died has submitted it."""
        attempts = reversed(self._attempt.run.attempts())
        later = (each for each in attempts if each.number > self._attempt.number)
        return next((each for each in later if each.job()), None)

    async def _submit_until_accepted(self) -> Attempt:
        while True:
            try:
                return await self._submit()
            except HpcDynamoError as e:
                log.error("the next job was not submitted: %s", e)
                self._set_successor(Successor(attempt=0, job_id="", detail=str(e)))
            await asyncio.sleep(RETRY_S)

    async def _submit(self) -> Attempt:
        """Submit the next job. A cancellation waits for it, since the outcome must name the job."""
        submission = asyncio.create_task(next_attempt.submit_next_attempt(self._attempt))
        try:
            attempt = await asyncio.shield(submission)
        except asyncio.CancelledError:
            self._set_submitted(await submission)
            raise
        self._set_submitted(attempt)
        return attempt

    def _set_submitted(self, attempt: Attempt) -> None:
        job = attempt.job()
        log.info("attempt %d will take over: job %s", attempt.number, job.job_id if job else "?")
        job_id = job.job_id if job else ""
        self._set_successor(Successor(attempt=attempt.number, job_id=job_id, detail="submitted"))

    async def _poll(self, attempt: Attempt, client: HttpClient) -> Successor:
        """Return the present state of the next job."""
        known = self.successor
        assert known
        try:
            outcome = await asyncio.to_thread(attempt.outcome)
            endpoint = await asyncio.to_thread(attempt.endpoint)
            if outcome:
                self._successor_ended = True
                ended = f"it has ended: {outcome.message}"
                return replace(known, url="", ready=False, detail=ended)
            if endpoint is None:
                detail = await self._startup_detail(attempt)
                return replace(known, url="", ready=False, detail=detail)
        except (OSError, HpcDynamoError) as e:
            return replace(known, ready=False, detail=str(e))
        return await self._probe(replace(known, url=endpoint.url), client)

    async def _startup_detail(self, attempt: Attempt) -> str:
        """Return the phase of a job that starts, or the scheduler's reason of one that waits."""
        status = await asyncio.to_thread(attempt.status)
        if status:
            return status.phase
        assert self.successor
        if time.monotonic() - self._last_queue_poll < QUEUE_POLL_S:
            return self.successor.detail
        self._last_queue_poll = time.monotonic()
        job = launch.find_job(attempt)
        if not job:
            return "no record of the next job"
        state, detail = await asyncio.to_thread(job.state)
        return f"{state}, {detail}"

    async def _probe(self, known: Successor, client: HttpClient) -> Successor:
        """Return the state of a next job that has an endpoint."""
        request = client.send("GET", known.url, "/ready")
        try:
            async with asyncio.timeout(READY_TIMEOUT_S), request as answer:
                await answer.read(MAX_REPORT_BYTES)
            self._last_answer = time.monotonic()
            if answer.status == 200:
                return replace(known, ready=True, detail="it takes new requests")
            return replace(known, ready=False, detail="it is not ready")
        except OSError as e:
            detail = f"{known.url} does not answer: {e or type(e).__name__}"
        silent = time.monotonic() - self._last_answer > SILENT_S
        return replace(known, url="" if silent else known.url, ready=False, detail=detail)

    def _set_successor(self, now: Successor) -> None:
        before, self.successor = self.successor, now
        if now == before:
            return
        log.info("attempt %d: %s", now.attempt, now.detail)
        if now.ready != (before is not None and before.ready):
            self._publish_url(now)
        self._changed()

    def _publish_url(self, now: Successor) -> None:
        """Publish the URL of the job that takes new requests."""
        own = self._attempt.endpoint()
        if now.ready or own:
            self._attempt.run.publish_url(now.url if now.ready or not own else own.url)
