"""One request's course through router and workers, as dispatch leads it."""

import asyncio
from collections.abc import Callable, Mapping

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import Ask, Lease, Router
from hpc_dynamo.simulation.load import Request
from hpc_dynamo.simulation.outcome import Seen
from hpc_dynamo.simulation.worker import Answer, Worker


class Lives:
    """Leads requests to their ends; `ended` is called with each."""

    def __init__(
        self, router: Router, workers: Mapping[int, Worker], ended: Callable[[Seen], None]
    ) -> None:
        self._router, self._workers, self._ended = router, workers, ended
        self._loop = asyncio.get_running_loop()

    async def lead(self, request: Request, hashes: bytes) -> None:
        """One that the router refuses is lost."""
        ask = Ask(tokens=request.prompt, hashes=hashes)
        try:
            lease = await self._router.route(ask)
        except RequestFailed as e:
            self._ended(Seen(request.at, request.prompt, request.answer, lost=e.message))
            return
        try:
            seen = await self._served(request, ask.blocks, lease)
        finally:
            lease.release()
        self._ended(seen)

    async def _served(self, request: Request, blocks: list[int], lease: Lease) -> Seen:
        decode = self._workers[lease.decode.rank]
        answer = Answer(request.prompt, request.answer, blocks)
        computed = answer
        if lease.prefill:
            computed = await self._prefilled(request, blocks, lease, lease.prefill.rank, answer)
        begun, done = self._loop.create_future(), self._loop.create_future()
        answer.begun, answer.done = _setting(begun), _setting(done)
        decode.submit(answer)
        await begun
        first = self._loop.time()
        lease.first_token()
        await done
        lease.progress(request.answer - 1)
        end, cached = self._loop.time(), computed.cached
        return Seen(request.at, request.prompt, request.answer, cached, first, end)

    async def _prefilled(
        self, request: Request, blocks: list[int], lease: Lease, rank: int, answer: Answer
    ) -> Answer:
        """The prompt, computed by the worker `rank`, where `answer` will pull it from."""
        worker, done = self._workers[rank], self._loop.create_future()
        prompt = Answer(request.prompt, 1, blocks, keeps=True, done=_setting(done))
        worker.submit(prompt)
        await done
        lease.prefilled()
        answer.pulls, answer.pulled = True, lambda: worker.let_go(prompt)
        return prompt


def _setting(future: asyncio.Future[None]) -> Callable[[], None]:
    return lambda: future.set_result(None)
