"""Execution of one request, from its prompts to the bytes that its client receives.

The request's task only waits for the end. The scheduler calls `on_update` after each step. It
writes the new output of all choices in one piece, so no task wakes up for a token. A client that
reads slowly receives the accumulated output when it has caught up.
"""

import asyncio
from collections.abc import Callable
from itertools import count

from hpc_dynamo.http import ResponseWriter
from hpc_dynamo.http.sse import encode_event
from hpc_dynamo.simulator.api_error import RequestRejected, error_body, send_json
from hpc_dynamo.simulator.response_formats import AnyRequest, ResponseBuilder
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sequence import OutputSequence, SequenceGroup
from hpc_dynamo.simulator.sglang_bootstrap import SglangRank

_numbers = count()

EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


def sequence_groups(
    request: AnyRequest,
    request_id: str,
    max_model_len: int,
    sglang: SglangRank | None = None,
    adapter: str = "",
) -> list[SequenceGroup]:
    """Return a group for each prompt of a request. Raises RequestRejected."""
    prompts, transfer = request.prompts(max_model_len), request.kv_transfer_params
    if transfer and len(prompts) > 1:
        raise RequestRejected("kv_transfer_params allow only one prompt", "prompt")
    groups = [
        SequenceGroup(
            id=f"{request_id}-{next(_numbers)}",  # clients may repeat their ids
            prompt=prompt,
            sampling=request.sampling(len(prompt), max_model_len),
            streaming=bool(request.stream),
            adapter=adapter,
            keep_blocks=bool(transfer and transfer.do_remote_decode),
            remote_blocks=transfer.remote_blocks() if transfer else None,
        )
        for prompt in prompts
    ]
    if sglang:
        for index, group in enumerate(groups):
            sglang.assign_room(group, request, index)
    return groups


class Generation:
    """Responds to one request with the output of its `groups`."""

    def __init__(
        self, reply: ResponseWriter, builder: ResponseBuilder, groups: list[SequenceGroup]
    ) -> None:
        self._reply, self._builder, self._groups = reply, builder, groups
        self._open = dict[int, OutputSequence]()  # unfinished choices of a stream
        self._wake = asyncio.Event()  # set at the end, or if the client does not keep up

    async def run(
        self, scheduler: Scheduler, choices: int, end: Callable[[SequenceGroup], None]
    ) -> None:
        """Submit the groups with `choices` each, until the end. `end` gets each of them then, also
        on cancellation, to free its work."""
        on_update = self._stream if self._groups[0].streaming else self._send_complete
        try:
            for group in self._groups:
                group.on_update = on_update
                scheduler.submit(group, 1 if group.keep_blocks else choices)
            while not self._reply.ended:
                await self._wake.wait()
                self._wake.clear()
                await self._reply.drain()
                on_update()
        finally:
            for group in self._groups:
                end(group)

    def _send_complete(self) -> None:
        if self._reply.ended or self._send_error() or not all(g.done for g in self._groups):
            return
        send_json(self._reply, self._builder.complete(self._groups))
        self._wake.set()

    def _send_error(self) -> bool:
        """Send status 500 and return True if a choice failed before anything was sent."""
        choices = (sequence for group in self._groups for sequence in group.choices)
        error = next((each.error for each in choices if each.error is not None), None)
        if error:
            send_json(self._reply, error_body(error.message, 500), 500)
            self._wake.set()
        return error is not None

    def _stream(self) -> None:
        if self._reply.congested:
            self._wake.set()
        elif not self._reply.ended and (self._reply.status or self._begin_stream()):
            events = [self._next_event(i, each) for i, each in list(self._open.items())]
            if not self._open:
                events.append(self._builder.closing(self._groups))
            self._reply.write(b"".join(events))
            if not self._open:
                self._reply.end()
                self._wake.set()

    def _begin_stream(self) -> bool:
        if self._send_error():
            return False
        choices = [sequence for group in self._groups for sequence in group.choices]
        self._open = dict(enumerate(choices))
        self._reply.begin(200, [EVENTS])
        self._reply.write(self._builder.opening(choices))
        return True

    def _next_event(self, index: int, sequence: OutputSequence) -> bytes:
        """Return the event with a choice's new output. Finished choices leave `_open`."""
        if sequence.finish_reason is not None:
            del self._open[index]
        if sequence.error is not None:
            return encode_event(error_body(sequence.error.message, 500))
        return self._builder.chunk(index, sequence)
