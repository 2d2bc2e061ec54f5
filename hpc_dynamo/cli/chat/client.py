"""HTTP client of OpenAI's chat API, as far as a terminal needs it.

It ignores the site's proxy: endpoints are on nodes of the cluster.
"""

import ssl
from collections.abc import Generator, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import msgspec

from hpc_dynamo.engine_errors import parse_engine_error
from hpc_dynamo.errors import ExitCode, HpcDynamoError, RequestFailed, UsageError, unknown_name
from hpc_dynamo.http import pinned_tls_context
from hpc_dynamo.http.sse import DONE, EventParser

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 600.0
Json = dict[str, Any]


class ChatClient:
    """Client of one endpoint. `cert` is the only certificate to trust, under any host name."""

    def __init__(self, url: str, key: str = "", cert: str = "") -> None:
        base = urlsplit(url.rstrip("/"))
        if base.scheme not in ("http", "https") or not base.hostname:
            raise UsageError(f"{url} is not a base URL", hint="--url http://localhost:8000/v1")
        self.url = base._replace(path=base.path or "/v1").geturl()
        self._key, self._cert = key, cert

    def models(self) -> list[str]:
        """Return the names of the served models."""
        with closing(self._connect()) as connection:
            answer = self._request(connection, "GET", "/models").read()
        return [model["id"] for model in msgspec.json.decode(answer)["data"]]

    def stream(self, body: Json) -> Generator[Json, None, None]:
        """Yield the chunks of a chat completion. Closing the generator cancels the request.

        Raises RequestFailed, also for an error in the stream, ConfigError for an unknown model,
        and HpcDynamoError if the endpoint does not answer.
        """
        with closing(self._connect()) as connection:
            try:
                answer = self._request(connection, "POST", "/chat/completions", body)
            except RequestFailed as e:
                if e.status == 404 and body["model"] not in (known := self.models()):
                    raise unknown_name("model", body["model"], known) from e
                raise
            yield from self._chunks(answer)

    def _chunks(self, answer: HTTPResponse) -> Iterator[Json]:
        parser = EventParser()
        try:
            while piece := answer.read1(1 << 16):
                for data, _ in parser.feed(piece):
                    if data is None:
                        continue
                    if data == DONE:
                        return
                    chunk: Json = msgspec.json.decode(data)
                    if "error" in chunk:
                        raise RequestFailed(_reason(data), status=502)
                    yield chunk
        except (OSError, HTTPException, msgspec.DecodeError) as e:
            raise RequestFailed(f"the answer was cut off: {e!r}", status=502) from e
        raise RequestFailed("the answer was cut off", status=502)

    def _connect(self) -> HTTPConnection:
        base = urlsplit(self.url)
        host, port = base.hostname or "", base.port
        if base.scheme == "http":
            return HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)
        return HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_S, context=_trust(self._cert))

    def _request(
        self, connection: HTTPConnection, method: str, path: str, body: Json | None = None
    ) -> HTTPResponse:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        try:
            connection.connect()
            connection.sock.settimeout(READ_TIMEOUT_S)
            connection.request(method, urlsplit(self.url).path + path, data, headers)
            answer = connection.getresponse()
        except (OSError, HTTPException) as e:
            hint = "hpc-dynamo status; outside the cluster, use the ssh command that it prints"
            raise HpcDynamoError(f"{self.url} does not answer: {e}", hint=hint) from e
        if answer.status != 200:
            raise self._error(answer)
        return answer

    def _error(self, answer: HTTPResponse) -> HpcDynamoError:
        body = answer.read()
        what = f"{self.url} answered {answer.status}: {_reason(body)}"
        hint = "--key-file FILE, or OPENAI_API_KEY" if answer.status in (401, 403) else ""
        error = RequestFailed(what, status=answer.status, body=body, hint=hint)
        error.exit_code = ExitCode.refused if error.final else ExitCode.failed
        return error


def _reason(body: bytes) -> str:
    """Return the message of an error body, or else its text."""
    return parse_engine_error(body).message or body.decode(errors="replace").strip()


def _trust(cert: str) -> ssl.SSLContext:
    """Return a context that trusts the usual authorities, or the first certificate of a file.

    The host name of that certificate is not checked: clients connect by address, or through a
    tunnel from localhost.
    """
    if not cert:
        return ssl.create_default_context()
    try:
        return pinned_tls_context(cert)
    except OSError as e:
        raise UsageError(f"{cert} is not a certificate: {e}", hint="--cert server.pem") from e
