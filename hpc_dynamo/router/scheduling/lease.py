"""What is asked of the router, and what it grants."""

import asyncio
from enum import IntEnum
from typing import Annotated, Protocol

import msgspec

from hpc_dynamo.config import Policy
from hpc_dynamo.errors import RequestFailed

HASH_BYTES = 8
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]


class RoutingHints(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a request says of its own routing; where it says nothing, the configuration holds."""

    policy: Policy | None = None
    overlap_weight: NonNegativeFloat | None = None
    decode_weight: NonNegativeFloat | None = None
    temperature: NonNegativeFloat | None = None
    priority: int = 0  # in the line: the higher first
    session: str = ""
    workers: tuple[int, ...] = ()  # ranks: no other worker of their role


class RoutingRequest(msgspec.Struct, frozen=True, array_like=True):
    """One request, as far as the choice of workers depends on it."""

    prompt_tokens: NonNegativeInt = 0  # of the prompt; 0: not known
    block_hashes: bytes = b""  # of its whole blocks, see hashes.block_hashes
    may_disaggregate: bool = True  # prefill and decode may be on two workers
    exclude: tuple[int, ...] = ()  # ranks that were tried
    timeout_s: float = 0.0  # for a worker to be free; 0: the router's own limit
    hints: RoutingHints = RoutingHints()
    model: str = ""  # whose workers; see topology.Worker

    def __post_init__(self) -> None:
        if len(self.block_hashes) % HASH_BYTES:
            raise ValueError(f"{len(self.block_hashes)} bytes are no whole number of hashes")

    @property
    def hash_list(self) -> list[int]:
        """The hashes, one by one."""
        return memoryview(self.block_hashes).cast("Q").tolist()


class Target(msgspec.Struct, frozen=True, array_like=True):
    """A worker to send to."""

    rank: int
    url: str


class LeaseEvent(IntEnum):
    """What the holder of a lease tells the router; the value is in brackets."""

    prefilled = 0
    first_token = 1
    progress = 2  # (tokens generated since the last)
    connection_lost = 3  # (rank)
    released = 4


class LeaseListener(Protocol):
    """Where notes go: the router itself, or the socket to it."""

    def on_lease_event(self, lease: int, note: LeaseEvent, value: int) -> None: ...


class Lease:
    """Workers that are ours for one request, until `release`, which must come.

    `lost` becomes the rank of a worker that left while we had it.
    """

    __slots__ = ("_listener", "_open", "decode", "id", "prefill", "worker_lost")

    def __init__(
        self, id_: int, prefill: Target | None, decode: Target, notes: LeaseListener
    ) -> None:
        self.id, self.prefill, self.decode = id_, prefill, decode
        self.worker_lost: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._listener, self._open = notes, True

    def report_prefilled(self) -> None:
        """The prefill worker has done its part."""
        self._listener.on_lease_event(self.id, LeaseEvent.prefilled, 0)

    def report_first_token(self) -> None:
        """The prompt is computed; from now on the answer grows."""
        self._listener.on_lease_event(self.id, LeaseEvent.first_token, 0)

    def report_progress(self, tokens: int) -> None:
        """The answer has grown by so many tokens."""
        self._listener.on_lease_event(self.id, LeaseEvent.progress, tokens)

    def report_connection_lost(self, rank: int) -> None:
        """A connection to this worker broke; it is left alone for a while."""
        self._listener.on_lease_event(self.id, LeaseEvent.connection_lost, rank)

    def report(self, note: LeaseEvent, value: int) -> None:
        """Any of these, as it came from a holder far away."""
        self._listener.on_lease_event(self.id, note, value)

    def release(self) -> None:
        """Nothing of this request is on its workers any more. May be called again."""
        if self._open:
            self._open = False
            self._listener.on_lease_event(self.id, LeaseEvent.released, 0)

    def set_worker_lost(self, rank: int) -> None:
        """For the router: a worker of this lease has left."""
        if not self.worker_lost.done():
            self.worker_lost.set_result(rank)


class Overloaded(RequestFailed):
    """The queue is full (429), or a place in it was kept too long (503)."""

    def __init__(self, message: str, *, status: int, retry_after_s: float) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class NoWorker(RequestFailed):
    """A role has no ready worker, and none came in time."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=503)


class NoSuchWorker(RequestFailed):
    """A request names workers that are not there, or none where it must."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=400)


class AllWorkersTried(RequestFailed):
    """Every worker of a role has been tried."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=503)
