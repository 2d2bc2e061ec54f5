"""Requests of SGLang's protocol: their ids, and when they end after their client has left.

Source: SGLang 0.5.23, srt/managers/tokenizer_manager.py. A request whose client has left runs on
until SGLang looks for its client, every 4 s (SGLANG_REQUEST_STATE_WAIT_TIMEOUT). /abort_request
ends it at once, by the id in its field `rid`. Prompt i of a list is a request of its own, `RID_i`.
"""

import asyncio
from collections.abc import Sequence

from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sequence import SequenceGroup


class SglangRequests:
    """Running requests of a rank by their ids. `disconnect_check_s` is SGLang's 4 s."""

    def __init__(self, scheduler: Scheduler, disconnect_check_s: float) -> None:
        self._scheduler, self._disconnect_check_s = scheduler, disconnect_check_s
        self._groups = dict[str, SequenceGroup]()

    def add(self, request_id: str | None, groups: Sequence[SequenceGroup]) -> None:
        """Add a request, under its own id and the ids of its prompts."""
        if request_id is None:
            return
        if len(groups) == 1:
            self._groups[request_id] = groups[0]
        self._groups |= {f"{request_id}_{i}": group for i, group in enumerate(groups)}

    def abort(self, request_id: str) -> None:
        """End a request. An unknown id is ignored, as in SGLang."""
        if group := self._groups.get(request_id):
            self._scheduler.abort(group)
            group.on_update()

    def end(self, group: SequenceGroup) -> None:
        """End a group whose response is complete, or later one whose client has left."""
        if group.done:
            self._remove(group)
        else:
            group.on_update = lambda: None
            asyncio.get_running_loop().call_later(self._disconnect_check_s, self._remove, group)

    def _remove(self, group: SequenceGroup) -> None:
        self._scheduler.abort(group)
        for name in [name for name, each in self._groups.items() if each is group]:
            del self._groups[name]
