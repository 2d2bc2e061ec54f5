"""Prefill/decode protocols: how a prefill and a decode worker of an engine share a request.

    SequentialProtocol (vLLM, TensorRT-LLM)        ConcurrentProtocol (SGLang)

    head ── prefill() body ──▶ prefill worker      head ─┬─ body + room ──▶ prefill worker
    head ◀─ answer: where the KV blocks are              └─ body + room ──▶ decode worker
    head ── decode() body ───▶ decode worker       the workers connect by the room's number,
            the decode worker pulls the blocks     and the KV cache is written to the decode worker

Implementations are pure: they rewrite request bodies and send nothing.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import msgspec

from hpc_dynamo.config import Role
from hpc_dynamo.json_reader import JsonError, read_value

# Fields of an OpenAI request or answer. Values may be msgspec.Raw: unread ones stay unchanged.
Body = dict[str, Any]


# Paths of requests that generate text.
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"

# Values of one field that are decoded: they take 60 ms.
MAX_IDS = 1 << 20

UNREADABLE = float("nan")  # neither null, a text nor an integer


def field_value(value: Any) -> Any:
    """Return a field's value in a Body, which may be raw JSON; UNREADABLE if it is invalid."""
    if not isinstance(value, msgspec.Raw):
        return value
    try:
        return read_value(bytes(value))
    except JsonError:
        return UNREADABLE


class SequentialProtocol(Protocol):
    """One request on two workers, one after the other. The prefill worker's answer gives the decode
    worker the address of the KV cache."""

    @property
    def paths(self) -> frozenset[str]:
        """Return paths of requests that can be executed like this."""

    def prefill(self, body: Body) -> Body:
        """Return the body for the prefill worker: computes the KV cache and one token."""

    def decode(self, body: Body, prefilled: Body) -> Body:
        """Return the body for the decode worker, given the prefill worker's answer.

        Raises RequestFailed if that answer has no transfer parameters.
        """

    def decode_headers(self, decode_body: Body, token: str) -> Sequence[tuple[bytes, bytes]]:
        """Return headers for the decode worker that belong to `decode_body`, the result of
        `decode`. `token` is the key of the run's workers."""

    def release(self, decode_body: Body) -> Body | None:
        """Return a body that makes the decode worker refuse `decode_body`, the result of `decode`,
        so that the prefill worker frees its blocks. None if no blocks are kept."""


@runtime_checkable
class ConcurrentProtocol(Protocol):
    """One request on two workers at the same time. Both get it with the same `room`, by which they
    connect themselves. The decode worker's answer is the client's."""

    @property
    def paths(self) -> frozenset[str]:
        """Return paths of requests that can be executed like this; the workers refuse others."""

    @property
    def bootstrap_path(self) -> str:
        """Return the prefill worker's path (GET, JSON) that reports its bootstrap port."""

    def worker_bodies(
        self, body: Body, url: str, bootstrap_info: Body, room: int
    ) -> tuple[Body, Body]:
        """Return the bodies for the prefill worker at `url` and for the decode worker.

        `bootstrap_info` is the answer of `bootstrap_path`. `room` has 63 bits and is unique to the
        request. Raises RequestFailed if `bootstrap_info` has no port.
        """

    @property
    def single_worker_fields(self) -> Body:
        """Return fields with which one worker serves a request by itself, as a probe."""

    @property
    def abort_path(self) -> str:
        """Return the workers' path (POST) that ends a request by its id."""

    def with_request_id(self, path: str, body: Body, request_id: str) -> Body | None:
        """Return the body with an id for the workers; None if they take none on this path."""

    def abort_bodies(self, path: str, body: Body) -> list[Body]:
        """Return the bodies for `abort_path` that end the request of a body with an id."""


PdProtocol = SequentialProtocol | ConcurrentProtocol


def probe_fields(protocol: PdProtocol, role: Role) -> Body:
    """Return the fields of a request that only one worker of that role serves."""
    if role is Role.aggregated or not isinstance(protocol, ConcurrentProtocol):
        return {}
    return protocol.single_worker_fields
