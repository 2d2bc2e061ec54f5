"""Raw HTTP conversations: bytes that are sent, and patterns of the bytes that come back."""

import re
from dataclasses import dataclass

import pytest

from hpc_dynamo.http import HttpRequest, ResponseWriter
from tests.unit.http.test_http import raw, serving

PIECES = (b"data: one\n\n", b"data: two\n\n")


async def answer(request: HttpRequest, reply: ResponseWriter) -> None:
    """Answer with a stream at /stream, else echo the request."""
    if request.path == "/stream":
        reply.begin(200, [(b"content-type", b"text/event-stream")])
        for piece in PIECES:
            reply.write(piece)
        reply.end()
    else:
        shown = f"{request.method} {request.path} {request.query} {sorted(request.headers.items())}"
        reply.send(200, shown.encode() + b" " + request.body)


@dataclass(frozen=True)
class Conversation:
    """Bytes that a client sends, and patterns of the response until the server closes."""

    sent: bytes
    patterns: tuple[bytes, ...]
    never: tuple[bytes, ...] = ()


CLOSE = b"Connection: close\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: h\r\n" + CLOSE + b"\r\n"

CONVERSATIONS = {
    "1.0 without keep-alive is closed": Conversation(
        b"GET /a HTTP/1.0\r\n\r\n",
        (rb"HTTP/1.1 200 OK\r\n", rb"connection: close\r\n", rb"content-length: \d+\r\n"),
    ),
    "1.0 with keep-alive is kept and says so": Conversation(
        b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n",
        (rb"connection: keep-alive\r\n", rb"GET /a", rb"connection: close\r\n", rb"GET /b"),
    ),
    "1.0 stream without keep-alive ends with the connection": Conversation(
        b"GET /stream HTTP/1.0\r\n\r\n",
        (rb"connection: close\r\n\r\ndata: one\n\ndata: two\n\n$",),
        (b"chunked", b"content-length"),
    ),
    "1.0 stream with keep-alive ends with the connection": Conversation(
        b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        (rb"connection: close\r\n\r\ndata: one\n\ndata: two\n\n$",),
        (b"chunked", b"content-length", b"keep-alive"),
    ),
    "1.0 POST with keep-alive": Conversation(
        b"POST /a HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nhi"
        b"GET /b HTTP/1.0\r\n\r\n",
        (rb"connection: keep-alive\r\n", rb"POST /a .* hi", rb"GET /b"),
    ),
    "1.1 is kept without saying so": Conversation(
        b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n" + LAST,
        (rb"GET /a", rb"connection: close\r\n", rb"GET /last"),
        (b"keep-alive",),
    ),
    "1.1 stream is chunked and the connection goes on": Conversation(
        b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n" + LAST,
        (rb"transfer-encoding: chunked\r\n", rb"b\r\ndata: one", rb"\r\n0\r\n\r\nHTTP"),
    ),
    "1.1 stream with close": Conversation(
        b"GET /stream HTTP/1.1\r\nHost: h\r\n" + CLOSE + b"\r\n",
        (rb"connection: close\r\n", rb"transfer-encoding: chunked\r\n", rb"\r\n0\r\n\r\n$"),
    ),
    "HEAD has the length and no body": Conversation(
        b"HEAD /a HTTP/1.1\r\nHost: h\r\n" + CLOSE + b"\r\n", (rb"content-length: \d+\r\n\r\n$",)
    ),
    "HEAD of a stream": Conversation(
        b"HEAD /stream HTTP/1.1\r\nHost: h\r\n\r\n" + LAST,
        (rb"transfer-encoding: chunked\r\n\r\nHTTP/1.1 200", rb"GET /last"),
        (b"data:",),
    ),
    "absolute-form": Conversation(
        b"GET http://host:80/v1/models?a=b HTTP/1.1\r\nHost: host\r\n" + CLOSE + b"\r\n",
        (rb"GET /v1/models a=b ",),
    ),
    "absolute-form, upper case, without a path": Conversation(
        b"GET HTTPS://host?x HTTP/1.1\r\nHost: host\r\n" + CLOSE + b"\r\n", (rb"GET / x ",)
    ),
    "absolute-form over HTTP/1.0": Conversation(
        b"POST http://h/a/b HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi", (rb"POST /a/b .*hi$",)
    ),
    "a URL inside the path is left alone": Conversation(
        b"GET /v1/models/http://x HTTP/1.1\r\nHost: h\r\n" + CLOSE + b"\r\n",
        (rb"GET /v1/models/http://x ",),
    ),
    "asterisk-form": Conversation(
        b"OPTIONS * HTTP/1.1\r\nHost: h\r\n" + CLOSE + b"\r\n", (rb"OPTIONS \* ",)
    ),
    "a list over several lines": Conversation(
        b"GET /a HTTP/1.1\r\nHost: h\r\nAccept: a\r\nX-List: 1\r\naccept: b\r\nX-List: 2, 3\r\n"
        + CLOSE + b"\r\n",
        (rb"\('accept', 'a, b'\)", rb"\('x-list', '1, 2, 3'\)"),
    ),
    "cookies": Conversation(
        b"GET /a HTTP/1.1\r\nHost: h\r\nCookie: a=1\r\nCookie: b=2\r\n" + CLOSE + b"\r\n",
        (rb"\('cookie', 'a=1; b=2'\)",),
    ),
    "the same key twice": Conversation(
        b"GET /a HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer x\r\nAuthorization: Bearer x\r\n"
        + CLOSE + b"\r\n",
        (rb"\('authorization', 'Bearer x'\)",),
    ),
    "two different keys": Conversation(
        b"GET /a HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer x\r\nAuthorization: Bearer y\r\n\r\n",
        (rb"HTTP/1.1 400 ", rb"connection: close\r\n", rb"authorization was sent more than once"),
    ),
    "two hosts": Conversation(
        b"GET /a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", (rb"400 .*host was sent more than once",)
    ),
    "two lengths": Conversation(
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
        (rb"HTTP/1.1 400 ",),
        (b"HTTP/1.1 200",),
    ),
    "the same length twice": Conversation(
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
        (rb"HTTP/1.1 400 ",),
        (b"HTTP/1.1 200",),
    ),
    "a length and chunks": Conversation(
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        (rb"HTTP/1.1 400 ",),
        (b"HTTP/1.1 200",),
    ),
    "HTTP/0.9 knows no chunks either": Conversation(
        b"GET /stream\r\n\r\n", (rb"connection: close\r\n\r\ndata: one\n\ndata: two\n\n$",)
    ),
}  # fmt: skip

DATE = rb"date: (Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n"


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_server_answers_conversation(name: str) -> None:
    said = CONVERSATIONS[name]
    async with serving(answer) as (_, port):
        got = await raw(port, said.sent)  # returns only because the server closes
    where = 0
    for pattern in said.patterns:
        found = re.compile(pattern, re.DOTALL).search(got, where)
        assert found, (pattern, got)
        where = found.end()
    assert not any(text in got for text in said.never), got
    answers = len(re.findall(rb"HTTP/1\.1 \d", got))
    assert len(re.findall(DATE, got)) == answers > 0, got
