"""Routing requests, leases and their events."""

import asyncio
from enum import IntEnum
from typing import Annotated, Protocol

import msgspec

from hpc_dynamo.config import Policy
from hpc_dynamo.errors import RequestFailed

HASH_BYTES = 8
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
# Infinity, NaN and numbers beyond 64 bits would fail in the router or on the way to it.
MAX_PRIORITY, MAX_RANK, MAX_WEIGHT = 2**31 - 1, 2**31 - 1, 1e9
MAX_RANKS, MAX_SESSION_CHARACTERS = 1024, 1024
Weight = Annotated[float, msgspec.Meta(ge=0, le=MAX_WEIGHT)]
Priority = Annotated[int, msgspec.Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
Rank = Annotated[int, msgspec.Meta(ge=0, le=MAX_RANK)]


class RoutingHints(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Routing settings of one request, which override the configuration."""

    policy: Policy | None = None
    overlap_weight: Weight | None = None
    decode_weight: Weight | None = None
    temperature: Weight | None = None
    priority: Priority = 0  # higher priorities leave the queue first
    session: Annotated[str, msgspec.Meta(max_length=MAX_SESSION_CHARACTERS)] = ""
    # Ranks; other workers of their roles are not used.
    workers: Annotated[tuple[Rank, ...], msgspec.Meta(max_length=MAX_RANKS)] = ()


class RoutingRequest(msgspec.Struct, frozen=True, array_like=True):
    """The properties of a request that its routing depends on."""

    prompt_tokens: NonNegativeInt = 0  # 0: unknown
    block_hashes: bytes = b""  # see hashes.block_hashes
    may_disaggregate: bool = True  # prefill and decode may run on two workers
    exclude: tuple[int, ...] = ()  # ranks already tried
    timeout_s: float = 0.0  # limit of the wait for a worker; 0: serve.queue_timeout_s
    hints: RoutingHints = RoutingHints()
    model: str = ""  # see topology.Worker
    # Blocks from the start that KV events can confirm, -1: all. Later ones depend on media.
    confirmable_blocks: int = -1

    def __post_init__(self) -> None:
        if len(self.block_hashes) % HASH_BYTES:
            raise ValueError(f"{len(self.block_hashes)} bytes are no whole number of hashes")

    @property
    def hash_list(self) -> list[int]:
        return memoryview(self.block_hashes).cast("Q").tolist()


class Target(msgspec.Struct, frozen=True, array_like=True):
    """A worker and the URL of its engine, and the data-parallel rank of it that was selected."""

    rank: int
    url: str
    dp_rank: int | None = None  # None: the worker has one rank, or its engine selects it
    dp_size: int = 1  # ranks of the worker


class LeaseEvent(IntEnum):
    """Events that the holder of a lease reports, with the meaning of their value."""

    prefilled = 0
    first_token = 1
    progress = 2  # tokens generated since the last report
    connection_lost = 3  # rank
    released = 4


class LeaseListener(Protocol):
    """Receiver of lease events: the router, or the connection to it."""

    def on_lease_event(self, lease: int, event: LeaseEvent, value: int) -> None: ...


class Lease:
    """Workers reserved for one request until `release`, which must be called.

    `worker_lost` resolves to the rank of a worker that is removed before the release.
    """

    __slots__ = ("_listener", "_open", "decode", "id", "prefill", "worker_lost")

    def __init__(
        self, id_: int, prefill: Target | None, decode: Target, listener: LeaseListener
    ) -> None:
        self.id, self.prefill, self.decode = id_, prefill, decode
        self.worker_lost: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._listener, self._open = listener, True

    def report_prefilled(self) -> None:
        self.report(LeaseEvent.prefilled, 0)

    def report_first_token(self) -> None:
        self.report(LeaseEvent.first_token, 0)

    def report_progress(self, tokens: int) -> None:
        """Report response tokens generated since the last report."""
        self.report(LeaseEvent.progress, tokens)

    def report_connection_lost(self, rank: int) -> None:
        """Report a broken connection to a worker, which then gets no requests for some time."""
        self.report(LeaseEvent.connection_lost, rank)

    def report(self, event: LeaseEvent, value: int) -> None:
        self._listener.on_lease_event(self.id, event, value)

    def release(self) -> None:
        """Give the workers back. Later calls have no effect."""
        if self._open:
            self._open = False
            self.report(LeaseEvent.released, 0)

    def set_worker_lost(self, rank: int) -> None:
        """Resolve `worker_lost`; called by the router."""
        if not self.worker_lost.done():
            self.worker_lost.set_result(rank)


class Overloaded(RequestFailed):
    """The queue is full (429), or the request was queued for too long (503)."""

    def __init__(self, message: str, *, status: int, retry_after_s: float) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s


class _RoutingFailed(RequestFailed):
    """A routing error with a fixed HTTP status."""

    http_status = 503

    def __init__(self, message: str) -> None:
        super().__init__(message, status=self.http_status)


class NoWorker(_RoutingFailed):
    """No worker of a role became ready in time, or none ever will."""


class NoSuchWorker(_RoutingFailed):
    """The routing hints name unknown workers, or none although the policy requires it."""

    http_status = 400


class AllWorkersTried(_RoutingFailed):
    """The request failed on every worker of a role."""
