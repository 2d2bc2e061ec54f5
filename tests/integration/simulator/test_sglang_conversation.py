"""The simulator answers a recorded conversation with SGLang in the same form as SGLang.

tests/sglang/test_bodies.py checks that real SGLang still answers so.
"""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.recorded_engines import Exchange, answer_shape, read_exchanges
from tests.support.simulator import REPORT_CACHED, Body, Client, Rank, simulator
from tests.support.unusual_bodies import CONTEXT, MODEL

RECORDED = Path("tests/sglang/conversation.jsonl.gz")
ROLES = ("prefill", "decode")
NOT_SIMULATED = {"echo", "return_token_ids", "stop", "stop_token_ids", "tools"}  # fields
# The simulator's JSON is an empty object, and a message may lack its content.
DIFFERENT = {"chat-JSON-object", "chat-message-without-content"}
OPTIONS = (
    "--pd-protocol", "sglang", "--model", MODEL, "--max-model-len", str(CONTEXT),
    "--mean-output-tokens", "100000", REPORT_CACHED,
)  # fmt: skip


@dataclass(frozen=True)
class Recorded:
    """One request on both workers, by role."""

    name: str
    exchanges: dict[str, Exchange]

    @property
    def room(self) -> int:
        return int(_body(self.exchanges["decode"])["bootstrap_room"])


def _body(exchange: Exchange) -> Body:
    return dict(msgspec.json.decode(exchange.request))


def recorded() -> Iterator[Recorded]:
    """Yield the requests that the simulator can answer like SGLang."""
    rooms = dict[int, dict[str, Exchange]]()
    for exchange in read_exchanges(RECORDED):
        body = _body(exchange)
        if "bootstrap_room" in body and not NOT_SIMULATED & body.keys():
            rooms.setdefault(body["bootstrap_room"], {})[exchange.role] = exchange
    for both in rooms.values():
        if len(both) == len(ROLES) and both["decode"].request_id not in DIFFERENT:
            yield Recorded(both["decode"].request_id, both)


@pytest.fixture(scope="module")
def pair() -> Iterator[dict[str, Rank]]:
    with ExitStack() as stack:
        yield {role: stack.enter_context(simulator(*OPTIONS, "--role", role)) for role in ROLES}


async def ask(client: Client, rank: Rank, exchange: Exchange, port: int) -> Exchange:
    body = _body(exchange) | {"bootstrap_host": "127.0.0.1", "bootstrap_port": port}
    async with client.session.post(rank.url + exchange.path, json=body) as answer:
        kind, content = answer.headers["Content-Type"], await answer.text()
        return msgspec.structs.replace(
            exchange, status=answer.status, content_type=kind, content=content
        )


@pytest.mark.parametrize("request_", [pytest.param(each, id=each.name) for each in recorded()])
async def test_simulator_answers_like_sglang(
    client: Client, pair: dict[str, Rank], request_: Recorded
) -> None:
    async with client.session.get(f"{pair['prefill'].url}/server_info") as answer:
        port = (await answer.json())["disaggregation_bootstrap_port"]
    exchanges = request_.exchanges
    answers = await asyncio.gather(*(ask(client, pair[r], exchanges[r], port) for r in ROLES))
    for role, found in zip(ROLES, answers, strict=True):
        expected: Any = answer_shape(exchanges[role])
        assert answer_shape(found) == expected, f"{role}: {found.content[:3000]}"
