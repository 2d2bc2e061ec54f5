"""One request's course through router and workers, as dispatch leads it."""

import asyncio
from collections.abc import Callable, Mapping

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import Lease, Router, RoutingRequest
from hpc_dynamo.simulation.load import TraceRequest
from hpc_dynamo.simulation.result import RequestResult
from hpc_dynamo.simulation.worker import ModelledSequence, SimulatedWorker


class RequestFlow:
    """Leads requests to their ends; `ended` is called with each."""

    def __init__(
        self,
        router: Router,
        workers: Mapping[int, SimulatedWorker],
        ended: Callable[[RequestResult], None],
    ) -> None:
        self._router, self._workers, self._ended = router, workers, ended
        self._loop = asyncio.get_running_loop()

    async def serve(self, request: TraceRequest, hashes: bytes) -> None:
        """One that the router refuses is lost."""
        ask = RoutingRequest(prompt_tokens=request.prompt_tokens, block_hashes=hashes)
        try:
            lease = await self._router.route(ask)
        except RequestFailed as e:
            self._ended(
                RequestResult(
                    request.at, request.prompt_tokens, request.response_tokens, error=e.message
                )
            )
            return
        try:
            seen = await self._served(request, ask.hash_list, lease)
        finally:
            lease.release()
        self._ended(seen)

    async def _served(
        self, request: TraceRequest, blocks: list[int], lease: Lease
    ) -> RequestResult:
        decode = self._workers[lease.decode.rank]
        answer = ModelledSequence(request.prompt_tokens, request.response_tokens, blocks)
        computed = answer
        if lease.prefill:
            computed = await self._prefilled(request, blocks, lease, lease.prefill.rank, answer)
        begun, done = self._loop.create_future(), self._loop.create_future()
        answer.on_first_token, answer.on_done = _setting(begun), _setting(done)
        decode.submit(answer)
        await begun
        first = self._loop.time()
        lease.report_first_token()
        await done
        lease.report_progress(request.response_tokens - 1)
        end, cached = self._loop.time(), computed.cached_tokens
        return RequestResult(
            request.at, request.prompt_tokens, request.response_tokens, cached, first, end
        )

    async def _prefilled(
        self,
        request: TraceRequest,
        blocks: list[int],
        lease: Lease,
        rank: int,
        answer: ModelledSequence,
    ) -> ModelledSequence:
        """The prompt, computed by the worker `rank`, where `answer` will pull it from."""
        worker, done = self._workers[rank], self._loop.create_future()
        prompt = ModelledSequence(
            request.prompt_tokens, 1, blocks, keeps_kv=True, on_done=_setting(done)
        )
        worker.submit(prompt)
        await done
        lease.report_prefilled()
        answer.pulls_kv, answer.on_pulled = True, lambda: worker.release_kv(prompt)
        return prompt


def _setting(future: asyncio.Future[None]) -> Callable[[], None]:
    return lambda: future.set_result(None)
