"""One request under way: from its prompts to the bytes that its client gets.

The request's task only waits for the end. The scheduler tells of news after each step, and what
is new is written there and then, in one piece for all choices of the request: no task wakes for
a token. A client that reads slowly gets what has gathered when it has caught up.
"""

import asyncio
import logging
from itertools import count

import msgspec

from hpc_dynamo.http import ResponseWriter
from hpc_dynamo.http.sse import encode_event
from hpc_dynamo.simulator.api_error import Refused, error_body
from hpc_dynamo.simulator.records import Records, Request
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sequence import Answer, Job
from hpc_dynamo.simulator.sglang_bootstrap import Meeting

log = logging.getLogger(__name__)
_numbers = count()

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


def jobs_of(
    request: Request,
    request_id: str,
    max_model_len: int,
    meeting: Meeting | None = None,
    adapter: str = "",
) -> list[Job]:
    """What the scheduler has to do; `meeting` where ranks meet in rooms. Raises Refused."""
    prompts, transfer = request.prompts(max_model_len), request.kv_transfer_params
    if transfer and len(prompts) > 1:
        raise Refused("kv_transfer_params go with one prompt only", param="prompt")
    jobs = [
        Job(
            id=f"{request_id}-{next(_numbers)}",  # clients may repeat theirs
            prompt=prompt,
            sampling=request.sampling(len(prompt), max_model_len),
            streaming=bool(request.stream),
            adapter=adapter,
            produce=bool(transfer and transfer.do_remote_decode),
            source=transfer.source() if transfer else None,
        )
        for prompt in prompts
    ]
    if meeting:
        for index, job in enumerate(jobs):
            meeting.send(job, request, index)
    return jobs


class Generation:
    """Answers one request with what the scheduler makes of `jobs`."""

    def __init__(self, reply: ResponseWriter, records: Records, jobs: list[Job]) -> None:
        self._reply, self._records, self._jobs = reply, records, jobs
        self._open = dict[int, Answer]()  # choices of a stream that go on
        self._wake = asyncio.Event()  # at the end, or when the client does not keep up

    async def run(self, scheduler: Scheduler, choices: int) -> None:
        """Submit the jobs with so many choices each, to the end. Cancelling frees their work."""
        told = self._stream if self._jobs[0].streaming else self._whole
        try:
            for job in self._jobs:
                job.on_news = told
                scheduler.submit(job, 1 if job.produce else choices)
            while not self._reply.ended:
                await self._wake.wait()
                self._wake.clear()
                await self._reply.drain()
                told()
        finally:
            for job in self._jobs:
                scheduler.abort(job)

    def _whole(self) -> None:
        if self._reply.ended or self._failed() or not all(job.done for job in self._jobs):
            return
        body = msgspec.json.encode(self._records.whole(self._jobs))
        self._reply.send(200, body, [JSON])
        self._wake.set()

    def _failed(self) -> bool:
        """Whether an error was answered: as long as nothing is sent the status can tell."""
        errors = [a.error for job in self._jobs for a in job.choices if a.error is not None]
        if errors:
            body = error_body(errors[0].message, 500)
            self._reply.send(500, msgspec.json.encode(body), [JSON])
            self._wake.set()
        return bool(errors)

    def _stream(self) -> None:
        if self._reply.congested:
            self._wake.set()
        elif not self._reply.ended and (self._reply.status or self._begin()):
            events = [self._next(index, answer) for index, answer in list(self._open.items())]
            if not self._open:
                events.append(self._records.closing(self._jobs))
            self._reply.write(b"".join(events))
            if not self._open:
                self._reply.end()
                self._wake.set()

    def _begin(self) -> bool:
        if self._failed():
            return False
        answers = [answer for job in self._jobs for answer in job.choices]
        self._open = dict(enumerate(answers))
        self._reply.begin(200, [EVENTS])
        self._reply.write(self._records.opening(answers))
        return True

    def _next(self, index: int, answer: Answer) -> bytes:
        """What is new of a choice. One that is complete is not open any more."""
        if answer.finish is not None:
            del self._open[index]
        if answer.error is not None:
            return encode_event(error_body(answer.error.message, 500))
        return self._records.chunk(index, answer)
