"""KV hand-off between ranks with vLLM's NixlConnector protocol.

    router             prefill rank                     decode rank
      | request ---------->|                                |
      |<- kv_transfer_params (blocks under a lease)         |
      | request with kv_transfer_params ------------------->|
      |                    |<- GET /nixl/agent (once a peer)|
      |                    |<- NIXL READ of the blocks -----|
      |             lease ends <- NIXL notification --------|
      |<-------------------------------------------- output |

The prefill rank's HTTP port is its side channel; the query of /nixl/agent names the agent of one
data-parallel rank. A lease without a pull expires.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from hpc_dynamo.errors import HpcDynamoError, KvTransferError
from hpc_dynamo.http import HttpClient
from hpc_dynamo.kv.agent import KvAgent
from hpc_dynamo.simulator.metrics import SimulatorMetrics
from hpc_dynamo.simulator.sequence import RemoteBlocks, SequenceGroup

log = logging.getLogger(__name__)

METADATA_PATH = "/nixl/agent"
METADATA_TIMEOUT_S = 10.0
# A notification without a transfer is only sent while the agent is polled. It has no
# confirmation, so the agent is polled for this long.
DECLINE_POLL_S = 2.0
MIN_POLL_S, MAX_POLL_S = 0.0005, 0.004  # between polls for notifications while there are leases


@dataclass(frozen=True)
class SideChannel:
    """Address at which peers fetch this rank's NIXL metadata, and the time limits."""

    host: str
    port: int
    lease_s: float
    transfer_timeout_s: float


class NixlHandoff:
    """Both sides of the hand-off. `watch` is the task that ends leases.

    `release` receives the blocks of ended leases. `flush` makes the bytes of blocks readable for
    peers before a lease begins. `corrupt`, if set, damages one of them (--damage-kv).
    """

    def __init__(
        self,
        agent: KvAgent,
        side_channel: SideChannel,
        client: HttpClient,
        metrics: SimulatorMetrics,
        release: Callable[[list[int]], None],
        flush: Callable[[list[int]], None],
        corrupt: Callable[[int], None] | None = None,
    ) -> None:
        self._agent, self._side_channel, self._client = agent, side_channel, client
        self._metrics, self._release, self._flush = metrics, release, flush
        self._corrupt = corrupt
        self._leases = dict[bytes, tuple[float, list[int]]]()  # (expiry, blocks) by group id
        self._poll = asyncio.Event()
        self._poll_until = 0.0
        self._connecting = defaultdict[str, asyncio.Lock](asyncio.Lock)  # by engine id

    def lease(self, group: SequenceGroup, blocks: list[int]) -> dict[str, object]:
        """Keep `blocks` until they are pulled. Return the response's kv_transfer_params."""
        expiry = asyncio.get_running_loop().time() + self._side_channel.lease_s
        self._leases[group.id.encode()] = (expiry, blocks)
        self._poll.set()
        self._flush(blocks)
        if self._corrupt:
            self._corrupt(blocks[-1])
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self._agent.name,
            "remote_block_ids": [blocks],  # one list per KV cache group, as in vLLM
            "remote_request_id": group.id,
            "remote_host": self._side_channel.host,
            "remote_port": self._side_channel.port,
            "tp_size": 1,
            "remote_num_tokens": len(group.prompt),
            "remote_prefill_cached_tokens": group.choices[0].cached_tokens,
        }

    async def watch(self) -> None:
        """Poll for notifications and expire leases while there are any, until cancelled."""
        while True:
            await self._poll.wait()
            self._poll.clear()
            poll_s = MIN_POLL_S
            while self._leases or asyncio.get_running_loop().time() < self._poll_until:
                ended = await self._end_leases()
                poll_s = MIN_POLL_S if ended or self._poll.is_set() else poll_s * 1.25
                self._poll.clear()
                await asyncio.sleep(min(poll_s, MAX_POLL_S))  # NIXL has nothing to await

    async def _end_leases(self) -> int:
        notifications = await self._agent.get_notifications()
        for group_id in notifications:
            _, blocks = self._leases.pop(group_id, (0.0, None))
            if blocks is not None:
                self._release(blocks)
                self._lease_ended(group_id, None)
        self._expire_leases()
        return len(notifications)

    def _expire_leases(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._leases:
            group_id, (expiry, blocks) = next(iter(self._leases.items()))  # the oldest
            if expiry > now:
                return
            error = "no decode rank pulled the prompt's KV blocks before their lease expired"
            log.warning("request %s: %s", group_id.decode(), error)
            del self._leases[group_id]
            self._metrics.expired += 1
            self._release(blocks)
            self._lease_ended(group_id, KvTransferError(error))

    def _lease_ended(self, group_id: bytes, error: HpcDynamoError | None) -> None:
        """Do nothing: with this protocol the prefill response was sent before."""

    def abort(self, group: SequenceGroup) -> None:
        """Do nothing: a decode rank may be pulling the blocks, so the lease continues."""

    async def pull(self, remote: RemoteBlocks, local: Sequence[int], skip: int) -> None:
        """Copy the prompt's blocks into `local`, except the first `skip`, which are cached.

        Raises KvTransferError that names the prefill rank. In that case `local` must not be
        reused before `wait_until_idle(local)`.
        """
        if len(remote.blocks) != len(local):
            await self.decline(remote)
            sizes = f"{len(remote.blocks)} blocks of a prompt of {len(local)}"
            hint = "check that both ranks have the same --block-size and all parameters were passed"
            raise KvTransferError(f"{remote.engine_id} has {sizes}", hint=hint)
        try:
            done = await self._agent.pull(
                await self._connect(remote),
                remote.blocks[skip:],
                local[skip:],
                notification=remote.request_id.encode(),
                timeout_s=self._side_channel.transfer_timeout_s,
            )
        except KvTransferError:
            self._metrics.failed_transfers += 1
            raise
        self._metrics.transfer_bytes.observe(done.size_bytes)

    async def wait_until_idle(self, local: Sequence[int]) -> None:
        """Wait until a failed pull can no longer write into `local`."""
        await self._agent.wait_settled(local)

    async def decline(self, remote: RemoteBlocks) -> None:
        """Notify the prefill rank that its blocks will not be pulled."""
        try:
            peer = await self._connect(remote)
            await self._agent.notify(peer, remote.request_id.encode())
            self._poll_until = asyncio.get_running_loop().time() + DECLINE_POLL_S
            self._poll.set()
        except KvTransferError as e:
            log.warning("request %s: %s", remote.request_id, e)

    async def _connect(self, remote: RemoteBlocks) -> str:
        """Return the peer's name once its metadata is here. Fetch the metadata only once."""
        async with self._connecting[remote.engine_id]:
            if not self._agent.has_peer(remote.engine_id):
                name = await self._agent.add_peer(await self._fetch_metadata(remote))
                if name != remote.engine_id:
                    what = f"{remote.host}:{remote.port} is {name}, not {remote.engine_id}"
                    raise KvTransferError(what, hint="that rank was restarted; send again")
            return remote.engine_id

    async def _fetch_metadata(self, remote: RemoteBlocks) -> bytes:
        url = f"http://{remote.host}:{remote.port}"
        try:
            async with asyncio.timeout(METADATA_TIMEOUT_S):
                path = f"{METADATA_PATH}?{quote(remote.engine_id)}"
                async with self._client.send("GET", url, path) as response:
                    metadata = await response.read()
        except OSError as e:  # includes TimeoutError
            what = f"no NIXL metadata of prefill rank {remote.engine_id} at {url}: {e!r}"
            hint = "check that the rank runs and is reachable from here"
            raise KvTransferError(what, hint=hint) from e
        if response.status != 200:
            what = f"{url} has no NIXL metadata of prefill rank {remote.engine_id}"
            raise KvTransferError(f"{what}: status {response.status}")
        return metadata
