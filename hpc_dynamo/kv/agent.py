"""Pull KV blocks from other processes with NIXL: each agent has one pool of blocks.

The consumer reads (NIXL READ) the producer's blocks into its own pool. The transfer carries a
notification, after which the producer may free the blocks. The Python API of the wheels is used as
it is (github.com/ai-dynamo/nixl, `_api.py`). The site selects UCX transports and network devices
with UCX_TLS and UCX_NET_DEVICES in the environment; nothing is set here.

NIXL's bindings raise exceptions without a common base class, hence the broad `except`s, each of
which raises KvTransferError.

NIXL's progress thread is off, because it uses 15 to 40 % of a core while idle. Instead, transfers
advance when either side calls NIXL. A producer therefore calls `get_notifications()` every few
milliseconds for as long as a peer may pull from it (12 microseconds per call).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from hpc_dynamo.errors import KvTransferError
from hpc_dynamo.kv.memory import memory_region
from hpc_dynamo.kv.nixl import load_nixl

log = logging.getLogger(__name__)

# NIXL works in a thread for larger blocks, since it would block the event loop.
INLINE_BLOCK_BYTES = 32 * 1024
FIRST_WAIT_S, MAX_WAIT_S = 0.0002, 0.005  # between two checks of a transfer in progress


class KvMetadata(msgspec.Struct, frozen=True):
    """Data that a peer needs to pull from a pool; sent as MessagePack by `KvAgent.metadata`."""

    name: str
    address: int  # address of the pool in its own process
    num_blocks: int
    block_bytes: int
    agent: bytes  # NIXL's own metadata, opaque
    memory_type: str = "DRAM"  # or VRAM
    device: int = 0  # GPU index, for VRAM


@dataclass(frozen=True)
class KvTransfer:
    """One finished pull."""

    size_bytes: int
    blocks: int
    seconds: float  # time until the bytes had arrived


@dataclass(frozen=True)
class _Peer:
    blocks: Any  # NIXL's prepared list of the peer's blocks
    num_blocks: int


@dataclass(frozen=True, eq=False)
class _AbandonedPull:
    """A failed or cancelled pull that may still write into local blocks."""

    handle: Any
    local_blocks: frozenset[int]


class KvAgent:
    """NIXL agent over one pool of blocks. Not thread-safe: used by one event loop.

    `pool` is a writable contiguous buffer (mmap, bytearray, numpy array) of whole blocks, or a
    torch tensor on a GPU. It must outlive the agent. `name` must be unique in the job.
    `first_wait_s=0` polls transfers without a pause, for measurements.
    Raises MissingDependency without NIXL, KvTransferError if the pool cannot be registered.
    """

    def __init__(
        self, name: str, pool: Any, block_bytes: int, *, first_wait_s: float = FIRST_WAIT_S
    ) -> None:
        api = load_nixl()
        self._memory, self._first_wait_s = memory_region(pool), first_wait_s
        size_bytes = self._memory.size_bytes
        if block_bytes <= 0 or size_bytes % block_bytes:
            what = f"a pool of {size_bytes} bytes does not divide into blocks of {block_bytes}"
            raise KvTransferError(what)
        self.name, self.block_bytes, self.num_blocks = name, block_bytes, size_bytes // block_bytes
        self._peers = dict[str, _Peer]()
        self._abandoned = list[_AbandonedPull]()
        large = block_bytes > INLINE_BLOCK_BYTES
        self._thread = ThreadPoolExecutor(1, "nixl") if large else None
        try:
            self._agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False))
            region = [(self._memory.address, size_bytes, self._memory.device, "")]
            self._registered = self._agent.register_memory(region, self._memory.memory_type)
            self._blocks = self._prepare("", self._record(b""))
        except Exception as e:  # NIXL's errors have no common base class
            hint = "compare UCX_TLS and UCX_NET_DEVICES with this node's devices (ucx_info -d)"
            raise KvTransferError(f"NIXL agent {name} did not start: {e}", hint=hint) from e

    def metadata(self) -> bytes:
        """Return the argument for `add_peer` of another process.

        Keep it secret: it grants read access to the pool.
        """
        return msgspec.msgpack.encode(self._record(self._agent.get_agent_metadata()))

    async def add_peer(self, metadata: bytes) -> str:
        """Register or replace a peer by its metadata; return its name. Raises KvTransferError."""
        try:
            peer = msgspec.msgpack.decode(metadata, type=KvMetadata)
        except msgspec.DecodeError as e:
            raise KvTransferError(f"unreadable metadata of a NIXL peer: {e}") from e
        if peer.block_bytes != self.block_bytes:
            what = f"{peer.name} has {peer.block_bytes}-byte blocks, this rank {self.block_bytes}"
            raise KvTransferError(what, hint="both ranks need the same model and block size")
        await self.remove_peer(peer.name)
        try:
            await self._call(self._agent.add_remote_agent, peer.agent)
            blocks = await self._call(self._prepare, peer.name, peer)
        except Exception as e:  # NIXL's errors have no common base class
            raise KvTransferError(f"NIXL peer {peer.name} could not be added: {e}") from e
        self._peers[peer.name] = _Peer(blocks, peer.num_blocks)
        return peer.name

    def has_peer(self, peer: str) -> bool:
        return peer in self._peers

    async def remove_peer(self, name: str) -> None:
        """Remove a peer. Does nothing for an unknown one."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            await self._call(peer.blocks.release)
            await self._call(self._agent.remove_remote_agent, name)

    async def pull(
        self,
        peer: str,
        remote_blocks: Sequence[int],
        local_blocks: Sequence[int],
        *,
        notification: bytes,
        timeout_s: float,
    ) -> KvTransfer:
        """Copy blocks of a peer into local blocks; the peer then receives `notification`.

        Raises KvTransferError that names the peer if it is unknown, gone or silent for `timeout_s`,
        or if an index is out of range. After an error or a cancellation await
        `wait_settled(local_blocks)` before you reuse these blocks.
        """
        self._check(peer, remote_blocks, local_blocks)
        began = time.monotonic()
        try:
            handle = await self._call(self._create, peer, remote_blocks, local_blocks, notification)
            await self._run(handle, local_blocks, began + timeout_s)
        except Exception as e:  # NIXL's errors have no common base class
            if not isinstance(e, TimeoutError):
                # The connection is broken; add_peer creates a new one.
                await self.remove_peer(peer)
            waited = f"after {time.monotonic() - began:.1f} s"
            what = f"pulling {len(local_blocks)} KV blocks from {peer} failed {waited}: {e}"
            hint = "check that the rank runs and that UCX_NET_DEVICES connects both nodes"
            raise KvTransferError(what, hint=hint) from e
        seconds = time.monotonic() - began
        count = len(local_blocks)
        return KvTransfer(count * self.block_bytes, count, seconds)

    async def wait_settled(self, local_blocks: Sequence[int]) -> None:
        """Wait until no failed or cancelled pull can still write into `local_blocks`.

        Neither a release nor a disconnect cancels a transfer over TCP: a paused peer delivers when
        it continues, seconds later. So there is no deadline: the wait ends with the transfer or
        with the peer's death.
        """
        wanted = frozenset(local_blocks)
        while pulls := [p for p in self._abandoned if p.local_blocks & wanted]:
            for pull in pulls:
                if await self._ended(pull.handle):
                    self._abandoned.remove(pull)
                    break
            else:
                await asyncio.sleep(MAX_WAIT_S)

    async def notify(self, peer: str, notification: bytes) -> None:
        """Send a notification without a transfer. Raises KvTransferError if the peer is gone."""
        self._check(peer, (), ())
        try:
            await self._call(self._agent.send_notif, peer, notification)
        except Exception as e:  # NIXL's errors have no common base class
            await self.remove_peer(peer)
            raise KvTransferError(f"{peer} did not receive {notification!r}: {e}") from e

    async def get_notifications(self) -> list[bytes]:
        """Return the notifications since the last call. Also advances the transfers of peers."""
        by_peer: dict[str, list[bytes]] = await self._call(self._agent.get_new_notifs)
        return [notification for received in by_peer.values() for notification in received]

    async def close(self) -> None:
        """Remove all peers and unregister the pool."""
        for name in list(self._peers):
            await self.remove_peer(name)
        await self._call(self._blocks.release)
        await self._call(self._agent.deregister_memory, self._registered)
        if self._thread is not None:
            self._thread.shutdown()

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call NIXL, which is not thread-safe, in its thread if blocks are large."""
        if self._thread is None:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _record(self, agent: bytes) -> KvMetadata:
        pool = self._memory
        return KvMetadata(
            self.name, pool.address, self.num_blocks, self.block_bytes, agent,
            pool.memory_type, pool.device,
        )  # fmt: skip

    def _prepare(self, owner: str, pool: KvMetadata) -> Any:
        size = pool.block_bytes
        rows = [(pool.address + i * size, size, pool.device) for i in range(pool.num_blocks)]
        return self._agent.prep_xfer_dlist(owner, rows, pool.memory_type)

    def _check(self, peer: str, remote: Sequence[int], local: Sequence[int]) -> None:
        known = self._peers.get(peer)
        if known is None:
            raise KvTransferError(f"NIXL peer {peer} is not known", hint="add_peer(metadata)")
        if len(remote) != len(local):
            raise KvTransferError(f"pull {len(remote)} blocks of {peer} into {len(local)} local")
        for blocks, size in ((remote, known.num_blocks), (local, self.num_blocks)):
            if any(not 0 <= b < size for b in blocks):
                raise KvTransferError(f"pull from {peer}: a block index outside 0..{size - 1}")

    def _create(
        self, peer: str, remote: Sequence[int], local: Sequence[int], notification: bytes
    ) -> Any:
        peer_blocks = self._peers[peer].blocks
        return self._agent.make_prepped_xfer(
            "READ", self._blocks, list(local), peer_blocks, list(remote), notification
        )

    async def _run(self, handle: Any, local: Sequence[int], deadline: float) -> None:
        """Post the transfer and wait for its end."""
        wait_s = self._first_wait_s
        try:
            state = await self._call(self._agent.transfer, handle)
            while state == "PROC":
                if time.monotonic() > deadline:
                    raise TimeoutError("the peer is silent")
                await asyncio.sleep(wait_s)  # NIXL has nothing to await
                wait_s = min(wait_s * 1.5, MAX_WAIT_S)
                state = await self._call(self._agent.check_xfer_state, handle)
            if state != "DONE":
                raise ConnectionError(f"NIXL reports {state}")
        except BaseException:  # also on cancellation: the bytes may still arrive
            self._abandoned.append(_AbandonedPull(handle, frozenset(local)))
            raise
        await self._call(handle.release)

    async def _ended(self, handle: Any) -> bool:
        try:
            if await self._call(self._agent.check_xfer_state, handle) == "PROC":
                return False
            await self._call(handle.release)
        except Exception as e:  # noqa: BLE001  # an error of NIXL ends the pull too
            log.debug("an abandoned transfer of %s ended: %s", self.name, e)
        return True
