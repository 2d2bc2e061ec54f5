"""KV blocks between processes with NIXL: one pool of blocks an agent, pulled by index.

The consumer reads (NIXL READ) the producer's blocks into its own and the transfer carries a
notice, so that the producer knows when to free them. The wheels' Python API is used as it is
(github.com/ai-dynamo/nixl, `_api.py`). Which transports and network devices UCX takes is the
site's choice, by UCX_TLS and UCX_NET_DEVICES in the environment; nothing is set here.

NIXL's bindings raise exceptions without a common base, hence the broad `except`s here, each of
which raises KvTransferError in turn.

NIXL's own progress thread is left off: idle, it took 15 to 40 % of a core. Instead transfers
advance when either side asks, so a producer calls `notices()` every few milliseconds for as
long as someone may pull from it (12 microseconds a call).
"""

import asyncio
import importlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec

from hpc_dynamo.errors import KvTransferError, MissingDependency
from hpc_dynamo.kv.memory import memory_of

log = logging.getLogger(__name__)

INSTALL = "pip install --no-deps nixl-cu12 numpy (nixl-cu13 beside CUDA 13)"
WHEELS = ("nixl_cu12", "nixl_cu13", "nixl")  # the same API; works without CUDA, in host memory
INLINE_BLOCK_BYTES = 32 * 1024  # larger blocks: NIXL works in a thread, it would hold up the loop
FIRST_WAIT_S, LONGEST_WAIT_S = 0.0002, 0.005  # between two looks at a transfer under way


class KvMetadata(msgspec.Struct, frozen=True):
    """What a peer must know to pull from a pool. `address` is the pool's, in its own process."""

    name: str
    address: int
    num_blocks: int
    block_bytes: int
    agent: bytes  # NIXL's own, opaque
    kind: str = "DRAM"  # or VRAM, of GPU `device`
    device: int = 0


@dataclass(frozen=True)
class Transfer:
    """One finished pull."""

    size_bytes: int
    blocks: int
    post_s: float  # until NIXL had taken the request
    seconds: float  # until the bytes were here


@dataclass
class Counters:
    """Sums over the agent's life, of pulls it made itself."""

    transfers: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    failures: int = 0

    def add(self, done: Transfer) -> None:
        self.transfers += 1
        self.size_bytes += done.size_bytes
        self.seconds += done.seconds


@dataclass(frozen=True)
class _Peer:
    blocks: Any  # NIXL's prepared list of the peer's blocks
    num_blocks: int


@dataclass(frozen=True, eq=False)
class _Stray:
    """A pull given up that NIXL may not have given up."""

    handle: Any
    local: frozenset[int]


class KvAgent:
    """One NIXL agent over one pool of memory. One event loop, one owner.

    `pool` is any writable contiguous buffer (mmap, bytearray, numpy array) of whole blocks, or a
    torch tensor on a GPU; it must outlive the agent. `name` must be unique in the job.
    `first_wait_s=0`: wait for transfers by asking all the time, for measurements.
    Raises MissingDependency without NIXL, KvTransferError where the pool cannot be registered.
    """

    def __init__(
        self, name: str, pool: Any, block_bytes: int, *, first_wait_s: float = FIRST_WAIT_S
    ) -> None:
        api = _load()
        self._memory, self._first_wait_s = memory_of(pool), first_wait_s
        size_bytes = self._memory.size_bytes
        if block_bytes <= 0 or size_bytes % block_bytes:
            what = f"a pool of {size_bytes} bytes does not divide into blocks of {block_bytes}"
            raise KvTransferError(what)
        self.name, self.block_bytes, self.num_blocks = name, block_bytes, size_bytes // block_bytes
        self.counters = Counters()
        self._peers = dict[str, _Peer]()
        self._strays = list[_Stray]()
        large = block_bytes > INLINE_BLOCK_BYTES
        self._thread = ThreadPoolExecutor(1, "nixl") if large else None
        try:
            self._agent = api.nixl_agent(name, api.nixl_agent_config(enable_prog_thread=False))
            region = [(self._memory.address, size_bytes, self._memory.device, "")]
            self._registered = self._agent.register_memory(region, self._memory.kind)
            self._blocks = self._prepare("", self._record(b""))
        except Exception as e:
            hint = "do UCX_TLS and UCX_NET_DEVICES name what this node has? (ucx_info -d)"
            raise KvTransferError(f"NIXL agent {name} did not start: {e}", hint=hint) from e

    def metadata(self) -> bytes:
        """For `add_peer` of another process. Keep it secret: it grants reading the pool."""
        return msgspec.msgpack.encode(self._record(self._agent.get_agent_metadata()))

    async def add_peer(self, metadata: bytes) -> str:
        """Makes a peer's blocks known and gives its name. Raises KvTransferError."""
        try:
            peer = msgspec.msgpack.decode(metadata, type=KvMetadata)
        except msgspec.DecodeError as e:
            raise KvTransferError(f"unreadable metadata of a NIXL peer: {e}") from e
        if peer.block_bytes != self.block_bytes:
            what = f"{peer.name} has blocks of {peer.block_bytes} bytes, we of {self.block_bytes}"
            raise KvTransferError(what, hint="both ranks need the same model and block size")
        await self.remove_peer(peer.name)
        try:
            await self._call(self._agent.add_remote_agent, peer.agent)
            blocks = await self._call(self._prepare, peer.name, peer)
        except Exception as e:
            raise KvTransferError(f"NIXL peer {peer.name} could not be added: {e}") from e
        self._peers[peer.name] = _Peer(blocks, peer.num_blocks)
        return peer.name

    def knows(self, peer: str) -> bool:
        return peer in self._peers

    async def remove_peer(self, name: str) -> None:
        """Forgets a peer. One that is not known is fine."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            await self._call(peer.blocks.release)
            await self._call(self._agent.remove_remote_agent, name)

    async def pull(
        self,
        peer: str,
        remote: Sequence[int],
        local: Sequence[int],
        *,
        notice: bytes,
        timeout_s: float,
    ) -> Transfer:
        """Copies the peer's blocks `remote` into ours at `local`; then the peer gets `notice`.

        Raises KvTransferError naming the peer: unknown, gone, an index out of range, or silent
        past `timeout_s`. After an error or a cancellation await `settle(local)` before those
        blocks are used for anything else.
        """
        self._check(peer, remote, local)
        began = time.monotonic()
        try:
            handle = await self._call(self._make, peer, remote, local, notice)
            post_s = await self._run(handle, local, began + timeout_s)
        except Exception as e:
            self.counters.failures += 1
            if not isinstance(e, TimeoutError):
                await self.remove_peer(peer)  # the connection is gone; add_peer makes a new one
            waited = f"after {time.monotonic() - began:.1f} s"
            what = f"pulling {len(local)} KV blocks from {peer} failed {waited}: {e}"
            hint = "is that rank alive, and do both nodes reach each other over UCX_NET_DEVICES?"
            raise KvTransferError(what, hint=hint) from e
        seconds = time.monotonic() - began
        done = Transfer(len(local) * self.block_bytes, len(local), post_s, seconds)
        self.counters.add(done)
        return done

    async def settle(self, local: Sequence[int]) -> None:
        """Until no failed or cancelled pull can write the blocks `local` any more.

        Neither a release nor a disconnect recalls a transfer over TCP: a peer that was only
        stopped delivers when it goes on, seconds later. So this has no deadline: it ends with
        the transfer or with the peer's death.
        """
        wanted = frozenset(local)
        while strays := [s for s in self._strays if s.local & wanted]:
            for stray in strays:
                if await self._ended(stray.handle):
                    self._strays.remove(stray)
                    break
            else:
                await asyncio.sleep(LONGEST_WAIT_S)

    async def notify(self, peer: str, notice: bytes) -> None:
        """A notice without a transfer. Raises KvTransferError where the peer is gone."""
        self._check(peer, (), ())
        try:
            await self._call(self._agent.send_notif, peer, notice)
        except Exception as e:
            await self.remove_peer(peer)
            raise KvTransferError(f"{peer} could not be told {notice!r}: {e}") from e

    async def notices(self) -> list[bytes]:
        """What peers said since the last call. Also moves their transfers on."""
        heard: dict[str, list[bytes]] = await self._call(self._agent.get_new_notifs)
        return [notice for of_one in heard.values() for notice in of_one]

    async def close(self) -> None:
        """Forgets all peers and the pool."""
        for name in list(self._peers):
            await self.remove_peer(name)
        await self._call(self._blocks.release)
        await self._call(self._agent.deregister_memory, self._registered)
        if self._thread is not None:
            self._thread.shutdown()

    async def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """All of NIXL goes through here: it is not thread-safe, and large blocks take time."""
        if self._thread is None:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _record(self, agent: bytes) -> KvMetadata:
        at, num = self._memory, self.num_blocks
        return KvMetadata(self.name, at.address, num, self.block_bytes, agent, at.kind, at.device)

    def _prepare(self, owner: str, of: KvMetadata) -> Any:
        size = of.block_bytes
        rows = [(of.address + i * size, size, of.device) for i in range(of.num_blocks)]
        return self._agent.prep_xfer_dlist(owner, rows, of.kind)

    def _check(self, peer: str, remote: Sequence[int], local: Sequence[int]) -> None:
        known = self._peers.get(peer)
        if known is None:
            raise KvTransferError(f"NIXL peer {peer} is not known", hint="add_peer(metadata)")
        if len(remote) != len(local):
            raise KvTransferError(f"{len(remote)} blocks of {peer} into {len(local)} of ours")
        for blocks, size in ((remote, known.num_blocks), (local, self.num_blocks)):
            if any(not 0 <= b < size for b in blocks):
                raise KvTransferError(f"pull from {peer}: a block index outside 0..{size - 1}")

    def _make(self, peer: str, remote: Sequence[int], local: Sequence[int], notice: bytes) -> Any:
        theirs = self._peers[peer].blocks
        return self._agent.make_prepped_xfer(
            "READ", self._blocks, list(local), theirs, list(remote), notice
        )

    async def _run(self, handle: Any, local: Sequence[int], deadline: float) -> float:
        """Post, then wait for the end. Returns the seconds that posting took."""
        began, wait_s = time.monotonic(), self._first_wait_s
        try:
            state = await self._call(self._agent.transfer, handle)
            post_s = time.monotonic() - began
            while state == "PROC":
                if time.monotonic() > deadline:
                    raise TimeoutError("the peer is silent")
                await asyncio.sleep(wait_s)  # NIXL gives nothing that could be awaited
                wait_s = min(wait_s * 1.5, LONGEST_WAIT_S)
                state = await self._call(self._agent.check_xfer_state, handle)
            if state != "DONE":
                raise ConnectionError(f"NIXL says {state}")
        except BaseException:  # cancellation too: the bytes may still be on their way
            self._strays.append(_Stray(handle, frozenset(local)))
            raise
        await self._call(handle.release)
        return post_s

    async def _ended(self, handle: Any) -> bool:
        try:
            if await self._call(self._agent.check_xfer_state, handle) == "PROC":
                return False
            await self._call(handle.release)
        except Exception as e:  # noqa: BLE001 - no common base, see above; an error is an end too
            log.debug("a lost transfer of %s ended: %s", self.name, e)
        return True


def _load() -> Any:
    """Imported on first use: it costs half a second, and most processes never move KV."""
    for wheel in WHEELS:
        try:
            return importlib.import_module(f"{wheel}._api")
        except ModuleNotFoundError as e:
            if e.name not in (wheel, f"{wheel}._api"):
                raise MissingDependency(f"{wheel} lacks {e.name}", hint=INSTALL) from e
    raise MissingDependency("NIXL is not installed", hint=INSTALL)
