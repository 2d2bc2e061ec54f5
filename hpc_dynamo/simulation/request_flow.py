"""Leads one request through router and workers, as dispatch does."""

import asyncio
from collections.abc import Callable, Mapping

from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.router import Lease, RequestRouter, RoutingRequest
from hpc_dynamo.simulation.load import TraceRequest
from hpc_dynamo.simulation.ranks import RankedWorker
from hpc_dynamo.simulation.result import RequestResult
from hpc_dynamo.simulation.worker import ModelledSequence, SimulatedWorker


class RequestFlow:
    """Serves requests; `on_result` is called with each result."""

    def __init__(
        self,
        router: RequestRouter,
        workers: Mapping[int, RankedWorker],
        on_result: Callable[[RequestResult], None],
    ) -> None:
        self._router, self._workers, self._on_result = router, workers, on_result
        self._loop = asyncio.get_running_loop()

    async def serve(self, request: TraceRequest, hashes: bytes) -> None:
        """Serve one request; a request that the router rejects has an error as its result."""
        routing_request = RoutingRequest(prompt_tokens=request.prompt_tokens, block_hashes=hashes)
        try:
            lease = await self._router.route(routing_request)
        except RequestFailed as e:
            sizes = request.prompt_tokens, request.response_tokens
            self._on_result(RequestResult(request.at, *sizes, error=e.message))
            return
        try:
            result = await self._served(request, routing_request.hash_list, lease)
        finally:
            lease.release()
        self._on_result(result)

    async def _served(
        self, request: TraceRequest, blocks: list[int], lease: Lease
    ) -> RequestResult:
        decode = self._workers[lease.decode.rank].selected(lease.decode)
        sequence = ModelledSequence(request.prompt_tokens, request.response_tokens, blocks)
        prompt_sequence = sequence
        if lease.prefill:
            prefill = self._workers[lease.prefill.rank].selected(lease.prefill)
            prompt_sequence = await self._prefilled(request, blocks, lease, prefill, sequence)
        begun, done = self._loop.create_future(), self._loop.create_future()
        sequence.on_first_token, sequence.on_done = _resolver(begun), _resolver(done)
        decode.submit(sequence)
        await begun
        first = self._loop.time()
        lease.report_first_token()
        await done
        lease.report_progress(request.response_tokens - 1)
        end, cached = self._loop.time(), prompt_sequence.cached_tokens
        return RequestResult(
            request.at, request.prompt_tokens, request.response_tokens, cached, first, end
        )

    async def _prefilled(
        self,
        request: TraceRequest,
        blocks: list[int],
        lease: Lease,
        worker: SimulatedWorker,
        sequence: ModelledSequence,
    ) -> ModelledSequence:
        """Return the prompt, computed by `worker`, from which `sequence` will pull it."""
        done = self._loop.create_future()
        prompt = ModelledSequence(
            request.prompt_tokens, 1, blocks, keeps_kv=True, on_done=_resolver(done)
        )
        worker.submit(prompt)
        await done
        lease.report_prefilled()
        sequence.pulls_kv, sequence.on_pulled = True, lambda: worker.release_kv(prompt)
        return prompt


def _resolver(future: asyncio.Future[None]) -> Callable[[], None]:
    return lambda: future.set_result(None)
