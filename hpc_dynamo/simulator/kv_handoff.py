"""Prefilled blocks from one rank to another, in the dialect of vLLM's NixlConnector.

The prefill rank keeps a prompt's blocks under a lease and names them in its answer's
`kv_transfer_params`. The decode rank fetches the other's NIXL metadata once (at
`/nixl/agent` of its HTTP port, which is the side channel here), pulls the blocks, and the
notice that comes with the transfer ends the lease. A lease that nobody takes up ends by itself.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpc_dynamo.errors import HpcDynamoError, KvTransferError
from hpc_dynamo.http import HttpClient
from hpc_dynamo.kv.agent import KvAgent
from hpc_dynamo.simulator.metrics import Metrics
from hpc_dynamo.simulator.sequence import Job, Source

log = logging.getLogger(__name__)

METADATA_PATH = "/nixl/agent"
METADATA_TIMEOUT_S = 10.0
STIR_S = 2.0  # a notice alone goes out only while we look at the agent, and nobody confirms it
FIRST_LOOK_S, LONGEST_LOOK_S = 0.0005, 0.004  # between two looks for notices, while leases run


@dataclass(frozen=True)
class Endpoint:
    """Where this rank's side channel is, and how long others have."""

    host: str
    port: int
    lease_s: float
    transfer_timeout_s: float


class NixlHandover:
    """Both sides. `free` gets the blocks of ended leases; `watch` is the task that ends them.

    `settle` puts the bytes of blocks that are about to be handed over where others read them;
    `damage`, where a test wants it, spoils one of them.
    """

    def __init__(
        self,
        agent: KvAgent,
        endpoint: Endpoint,
        client: HttpClient,
        metrics: Metrics,
        free: Callable[[list[int]], None],
        settle: Callable[[list[int]], None],
        damage: Callable[[int], None] | None = None,
    ) -> None:
        self._agent, self._endpoint, self._client = agent, endpoint, client
        self._metrics, self._free, self._settle, self._damage = metrics, free, settle, damage
        self._leases = dict[bytes, tuple[float, list[int]]]()
        self._leased = asyncio.Event()
        self._stir_until = 0.0  # notices of ours may be on their way until then
        self._meeting = defaultdict[str, asyncio.Lock](asyncio.Lock)

    def lease(self, job: Job, blocks: list[int]) -> dict[str, object]:
        """Keep `blocks` until they were pulled. Returns the answer's kv_transfer_params."""
        until = asyncio.get_running_loop().time() + self._endpoint.lease_s
        self._leases[job.id.encode()] = (until, blocks)
        self._leased.set()
        self._settle(blocks)
        if self._damage:
            self._damage(blocks[-1])
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self._agent.name,
            "remote_block_ids": [blocks],  # one list a KV cache group, as in vLLM
            "remote_request_id": job.id,
            "remote_host": self._endpoint.host,
            "remote_port": self._endpoint.port,
            "tp_size": 1,
            "remote_num_tokens": len(job.prompt),
            "remote_prefill_cached_tokens": job.choices[0].cached,
        }

    async def watch(self) -> None:
        """Hear of finished transfers and move them on, as long as leases run; until cancelled."""
        while True:
            await self._leased.wait()
            self._leased.clear()
            look_s = FIRST_LOOK_S
            while self._leases or asyncio.get_running_loop().time() < self._stir_until:
                ended = await self._end_leases()
                look_s = FIRST_LOOK_S if ended or self._leased.is_set() else look_s * 1.25
                self._leased.clear()
                await asyncio.sleep(min(look_s, LONGEST_LOOK_S))  # NIXL gives nothing to await

    async def _end_leases(self) -> int:
        notices = await self._agent.get_notifications()
        for notice in notices:
            _, blocks = self._leases.pop(notice, (0.0, None))
            if blocks is None:
                self._metrics.late_notices += 1
            else:
                self._free(blocks)
                self._over(notice, None)
        self._expire()
        return len(notices)

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._leases:
            request, (until, blocks) = next(iter(self._leases.items()))  # the oldest
            if until > now:
                return
            log.warning("request %s: no decode rank came for its KV blocks", request.decode())
            del self._leases[request]
            self._metrics.expired += 1
            self._free(blocks)
            self._over(request, KvTransferError("no decode rank came for the prompt's KV blocks"))

    def _over(self, request: bytes, error: HpcDynamoError | None) -> None:
        """A lease has ended; nobody waits for that where the prefill rank answers before."""

    def give_up(self, job: Job) -> None:
        """The client of a job is gone. A lease goes on: another may have its blocks by now."""

    async def pull(self, source: Source, local: Sequence[int], skip: int) -> None:
        """Copy the prompt's blocks into `local`, but for the first `skip`, which are here already.

        Raises KvTransferError naming the prefill rank; then `settle(local)` before reuse.
        """
        if len(source.blocks) != len(local):
            await self.decline(source)
            what = f"{source.engine_id} has {len(source.blocks)} blocks of a prompt of {len(local)}"
            hint = "do both ranks have the same --block-size, and were all parameters passed on?"
            raise KvTransferError(what, hint=hint)
        try:
            peer = await self._meet(source)
            notice = source.request_id.encode()
            await self._transfer(peer, source.blocks[skip:], local[skip:], notice)
        except KvTransferError:
            self._metrics.failed_transfers += 1
            raise

    async def settle(self, local: Sequence[int]) -> None:
        """Until a failed pull can no longer write into `local`."""
        await self._agent.wait_settled(local)

    async def decline(self, source: Source) -> None:
        """Tell the prefill rank that nobody will come for these blocks."""
        try:
            await self._agent.notify(await self._meet(source), source.request_id.encode())
            self._stir_until = asyncio.get_running_loop().time() + STIR_S
            self._leased.set()
        except KvTransferError as e:
            self._metrics.failed_notices += 1
            log.warning("request %s: %s", source.request_id, e)

    async def _transfer(
        self, peer: str, remote: Sequence[int], local: Sequence[int], notice: bytes
    ) -> None:
        timeout_s = self._endpoint.transfer_timeout_s
        done = await self._agent.pull(peer, remote, local, notification=notice, timeout_s=timeout_s)
        self._metrics.transfer_s.observe(done.seconds)
        self._metrics.post_s.observe(done.post_s)
        self._metrics.transfer_bytes.observe(done.size_bytes)
        self._metrics.descriptors.observe(done.blocks)

    async def _meet(self, source: Source) -> str:
        """The peer's name, once its metadata is here. Many requests, one question."""
        async with self._meeting[source.engine_id]:
            if not self._agent.has_peer(source.engine_id):
                name = await self._agent.add_peer(await self._fetch(source))
                if name != source.engine_id:
                    what = f"{source.host}:{source.port} is {name}, not {source.engine_id}"
                    raise KvTransferError(what, hint="that rank was restarted; send again")
            return source.engine_id

    async def _fetch(self, source: Source) -> bytes:
        url = f"http://{source.host}:{source.port}"
        try:
            async with asyncio.timeout(METADATA_TIMEOUT_S):
                async with self._client.send("GET", url, METADATA_PATH) as answer:
                    metadata = await answer.read()
        except OSError as e:  # TimeoutError is one
            what = f"no NIXL metadata of prefill rank {source.engine_id} at {url}: {e!r}"
            raise KvTransferError(what, hint="is that rank alive and reachable from here?") from e
        if answer.status != 200:
            what = f"{url} has no NIXL metadata of prefill rank {source.engine_id}"
            raise KvTransferError(f"{what}: status {answer.status}")
        return metadata
