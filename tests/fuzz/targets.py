"""Readers to fuzz. Each may raise only the errors that it documents."""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hpc_dynamo import jsonl
from hpc_dynamo.batch.input_file import read_input
from hpc_dynamo.engine_errors import parse_engine_error
from hpc_dynamo.errors import HpcDynamoError, WireError
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.multipart import form_fields
from hpc_dynamo.frontend.request_translator import read_body
from hpc_dynamo.frontend.routing_hints import parse_routing_hints
from hpc_dynamo.http.sse import EventParser
from hpc_dynamo.json_reader import JsonError, read_value
from hpc_dynamo.kv.events import BlockRemoved, BlockStored, KvEventBatch, decode_events
from hpc_dynamo.messages import ControlMessage, Heartbeat, KvEvents
from hpc_dynamo.router import RoutingHints, RoutingRequest
from hpc_dynamo.router.rpc.protocol import ENCODER, RouteCall, ToServer
from hpc_dynamo.wire import MessageCodec
from tests.fuzz.live_frontend import conversations, live_frontend

CODEC: MessageCodec[ControlMessage] = MessageCodec(ControlMessage)  # type: ignore[arg-type]  # a union is no type[T]
TO_SERVER = msgspec.msgpack.Decoder(ToServer)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hé [{"}], "max_tokens": 3}
HINTS = {"hpc_dynamo": {"temperature": 0.5, "priority": 3, "workers": [1, 2]}, "prompt": ["a", "b"]}
JSONS = [json.dumps(body).encode() for body in (CHAT, HINTS, [1.5, None, True, "x\ud83d\ude00"])]
STORED = BlockStored([1, b"2"], None, list(range(16)), 16, None, None, None, None, None)


Reader = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """A reader, and valid inputs to mutate. A reader of a live process is `opened` first."""

    seeds: Sequence[bytes]
    read: Reader | None = None
    open: Callable[[], AbstractContextManager[Reader]] | None = None

    def opened(self) -> AbstractContextManager[Reader]:
        if self.open:
            return self.open()
        assert self.read
        return nullcontext(self.read)


def _body(data: bytes) -> None:
    with suppress(ApiError):
        body = read_body(data, 1000)
        parse_routing_hints({"x-priority": data[:20].decode("latin-1")}, body)


def _json(data: bytes) -> None:
    with suppress(JsonError):
        read_value(data)


def _control(data: bytes) -> None:
    with suppress(WireError):
        CODEC.decode(data)


def _kv_events(data: bytes) -> None:
    with suppress(WireError):
        decode_events(data)


def _router_record(data: bytes) -> None:
    with suppress(msgspec.DecodeError, RecursionError):  # FramedConnection logs both
        TO_SERVER.decode(data)


def _file(data: bytes) -> Path:
    path = Path(tempfile.gettempdir()) / f"hpc-dynamo-fuzz-{id(data)}"
    path.write_bytes(data)
    return path


def _jsonl(data: bytes) -> None:
    path = _file(data)
    try:
        list(jsonl.read(path, dict))
    finally:
        path.unlink()


def _batch_input(data: bytes) -> None:
    path = _file(data)
    try:
        with suppress(HpcDynamoError):
            read_input(path)
    finally:
        path.unlink()


def _events(data: bytes) -> None:
    parser = EventParser()
    for at in range(0, len(data), 7):
        list(parser.feed(data[at : at + 7]))


LINE = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
LINES = b"".join(json.dumps(LINE | {"custom_id": str(i)}).encode() + b"\n" for i in range(3))
ROUTE = RouteCall(7, RoutingRequest(5, b"12345678", hints=RoutingHints(priority=1, workers=(1,))))
FORM = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n'
ERROR = b'{"error": {"message": "no", "code": 4}}'
DEEP = b"[" * 2000 + b"]" * 2000
DEEP_MSGPACK = b"\x91" * 5000 + b"\xc0"
STREAMS = [b"data: {}\n\ndata: [DONE]\n\n", b": c\r\nevent: e\r\ndata: 1\r\n\r\n"]
TARGETS = {
    "frontend": Target(conversations(), open=live_frontend),
    "json": Target([*JSONS, DEEP], _json),
    "request body": Target([*JSONS, DEEP], _body),
    "form": Target([FORM], form_fields),
    "engine error": Target(
        [*JSONS, b'{"error": {"message": "no", "code": 4}}'], parse_engine_error
    ),
    "sse": Target(
        [b"data: {}\n\ndata: [DONE]\n\n", b": c\r\nevent: e\r\ndata: 1\r\n\r\n"], _events
    ),
    "control plane": Target(
        [
            DEEP_MSGPACK,
            CODEC.encode(Heartbeat(node=1)),
            CODEC.encode(KvEvents(rank=1, seq=2, payload=b"abc")),
            msgspec.msgpack.encode(["SetRole", 1]),
        ],
        _control,
    ),
    "kv events": Target(
        [
            DEEP_MSGPACK,
            msgspec.msgpack.encode(KvEventBatch(1.0, [STORED, BlockRemoved([1], None, None)], 0)),
        ],
        _kv_events,
    ),
    "router": Target([ENCODER.encode(ROUTE)], _router_record),
    "jsonl": Target([LINES, DEEP + b"\n"], _jsonl),
    "batch input": Target([LINES], _batch_input),
}
