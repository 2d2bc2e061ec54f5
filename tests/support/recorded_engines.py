"""HTTP proxies in front of engines that record each request to them and the engine's answer.

A file of records is gzipped JSON Lines with one Exchange each.
"""

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec

from hpc_dynamo.http.sse import DONE, MEDIA_TYPE, EventParser

FORWARDED = ("Authorization", "Content-Type", "X-Request-Id")
TIMEOUT_S = 300.0  # on a busy machine


class Exchange(msgspec.Struct, frozen=True):
    """A request to an engine and its answer. `request_id` is the client's."""

    request_id: str
    role: str
    path: str
    request: msgspec.Raw
    status: int
    content_type: str
    content: str


class EngineRecorder(ThreadingHTTPServer):
    """Proxy of one engine. It keeps every POST in `exchanges` and sends whole answers."""

    daemon_threads = True

    def __init__(self, engine_url: str, role: str, exchanges: list[Exchange]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.engine_url, self.role, self.exchanges = engine_url, role, exchanges
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a client may leave before its answer."""


class _Handler(BaseHTTPRequestHandler):
    server: EngineRecorder
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(*self._ask(None))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, kind, content = self._ask(body)
        self.server.exchanges.append(
            Exchange(
                self.headers.get("X-Request-Id", ""), self.server.role, self.path,
                msgspec.Raw(body or b"null"), status, kind, content.decode(),
            )
        )  # fmt: skip
        self._answer(status, kind, content)

    def _ask(self, body: bytes | None) -> tuple[int, str, bytes]:
        headers = {name: self.headers[name] for name in FORWARDED if name in self.headers}
        request = Request(self.server.engine_url + self.path, body, headers)
        try:
            with urlopen(request, timeout=TIMEOUT_S) as found:
                return found.status, found.headers.get("Content-Type", ""), found.read()
        except HTTPError as e:
            with e:
                return e.code, e.headers.get("Content-Type", ""), e.read()

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def recorder(engine_url: str, role: str, exchanges: list[Exchange]) -> Iterator[EngineRecorder]:
    """Start a proxy; end it with the block."""
    with EngineRecorder(engine_url, role, exchanges) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


def write_exchanges(path: Path, exchanges: Iterable[Exchange]) -> None:
    lines = b"\n".join(map(msgspec.json.encode, exchanges))
    path.write_bytes(gzip.compress(lines, mtime=0))


def read_exchanges(path: Path) -> list[Exchange]:
    decoder = msgspec.json.Decoder(Exchange)
    return [decoder.decode(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


# Fields of answers whose texts are compared. Of all others only the type is.
COMPARED = frozenset({"finish_reason", "object", "phase", "role", "status", "stop_reason", "type"})
BY_TOKEN = "top_logprobs"  # in completions: objects whose names are tokens
# Fields of the request, and one that exists only after an earlier request.
IGNORED = frozenset({"tools", "tool_choice", "cache_read_input_tokens"})


def answer_shape(exchange: Exchange) -> Any:
    """Return what a request to the same engine must have again: status, names and types of fields,
    and the kinds of a stream's events, in the order of their first."""
    if exchange.status != 200:
        return exchange.status, _shape(msgspec.json.decode(exchange.content), compared=frozenset())
    if not exchange.content_type.startswith(MEDIA_TYPE):
        return exchange.status, _shape(msgspec.json.decode(exchange.content))
    shapes = list[Any]()
    for event in EventParser().feed(exchange.content.encode()):
        data = event.data or b"null"
        shape = data.decode() if data == DONE else _shape(msgspec.json.decode(data))
        if shape not in shapes:  # events of several choices come in any order
            shapes.append(shape)
    return exchange.status, shapes


def _shape(value: Any, name: str = "", compared: frozenset[str] = COMPARED) -> Any:
    if isinstance(value, dict):
        if name == BY_TOKEN and "token" not in value:
            return "by token"
        return {k: _shape(inner, k, compared) for k, inner in value.items() if k not in IGNORED}
    if isinstance(value, list):
        shapes = [_shape(inner, name, compared) for inner in value]
        return [shape for i, shape in enumerate(shapes) if shape not in shapes[:i]]
    if isinstance(value, str) and name not in compared:
        return "text"
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else value
