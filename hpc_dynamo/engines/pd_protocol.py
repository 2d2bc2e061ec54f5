"""Prefill/decode protocols: how two workers of an engine share a request.

Implementations are pure: they rewrite request bodies and send nothing.
"""

from typing import Any, Protocol, runtime_checkable

import msgspec

from hpc_dynamo.config import Role
from hpc_dynamo.json_reader import JsonError, read_value

# Of an OpenAI request or answer. Values may be msgspec.Raw: what nobody reads stays as it came.
Body = dict[str, Any]


# Paths of requests that generate text.
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"

UNREADABLE = float("nan")  # neither null, a text nor an integer


def plain(value: Any) -> Any:
    """The value of a field of a Body, which may still be JSON; UNREADABLE if that is not valid."""
    if not isinstance(value, msgspec.Raw):
        return value
    try:
        return read_value(bytes(value))
    except JsonError:
        return UNREADABLE


class Sequential(Protocol):
    """One request over two workers, one after the other: the prefill worker's answer tells the
    decode worker where the KV cache lies."""

    @property
    def paths(self) -> frozenset[str]:
        """Paths of requests that can be executed like this."""

    def prefill(self, body: Body) -> Body:
        """The body for the prefill worker: computes the KV cache and one token."""

    def decode(self, body: Body, prefilled: Body) -> Body:
        """The body for the decode worker, given the prefill worker's answer.

        Raises RequestFailed where that answer carries no hand-over.
        """

    def release(self, handed: Body) -> Body | None:
        """Given what `decode` gave: a body that makes the decode worker refuse it and let the
        prefill worker free its blocks; None where nothing is kept."""


@runtime_checkable
class Concurrent(Protocol):
    """One request over two workers at the same time: both get it with the same `room`, meet
    there by themselves, and the decode worker's answer is the client's."""

    @property
    def paths(self) -> frozenset[str]:
        """Paths of requests that can be executed like this; the workers refuse others."""

    @property
    def introduction(self) -> str:
        """A path of the prefill worker that tells where others meet it (GET, JSON)."""

    def both(self, body: Body, url: str, told: Body, room: int) -> tuple[Body, Body]:
        """The bodies for the prefill worker at `url`, which `told` that of itself, and for the
        decode worker. `room` is of 63 bits and no other request's.

        Raises RequestFailed where `told` names no place to meet.
        """

    @property
    def alone(self) -> Body:
        """Fields with which one of the two serves a request without the other, as a probe."""


Dialect = Sequential | Concurrent


def probing(dialect: Dialect, role: Role) -> Body:
    """Fields that a request needs to be served by a worker of that role and nobody else."""
    if role is Role.aggregated or not isinstance(dialect, Concurrent):
        return {}
    return dialect.alone
