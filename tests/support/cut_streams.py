"""A migrating dispatcher in this process, before engines whose first stream is cut."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from hpc_dynamo.config import Config, Role, TopologyKind
from hpc_dynamo.config import Router as RouterConfig
from hpc_dynamo.dispatch import Dispatcher, RequestBuilder, RequestContext, StreamMigrator
from hpc_dynamo.dispatch.stream_record import StreamRecord
from hpc_dynamo.engines import PdProtocol
from hpc_dynamo.frontend.relay import ResponseRelay
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.http import HttpClient, ResponseWriter
from hpc_dynamo.json_reader import read_fields
from hpc_dynamo.preprocess import Preprocessor
from hpc_dynamo.router import AdmissionLimits, RequestRouter
from tests.support.typed_streams import FORM, assert_unbroken_events

CONTEXT_TOKENS = 512
Json = dict[str, Any]


@dataclass
class Cutter:
    """Bytes after which the next streams are cut, from the first byte of the response's head."""

    after: list[int] = field(default_factory=list)
    seen: bytes = b""  # last stream that was not cut, with its head
    continued: asyncio.Event = field(default_factory=asyncio.Event)  # a stream runs after the cuts


@dataclass
class CuttingProxy:
    """Forwards connections to an engine. Closes them in streams as `cutter` asks."""

    host: str
    port: int
    cutter: Cutter

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(self.host, self.port)
        sending = asyncio.create_task(_copy(reader, upstream_writer))
        streamed, seen = 0, b""
        try:
            while data := await upstream_reader.read(65536):
                if self.cutter.after and (streamed or b"event-stream" in data):
                    if streamed + len(data) > self.cutter.after[0]:
                        writer.write(data[: self.cutter.after.pop(0) - streamed])
                        return
                    streamed += len(data)
                elif b"event-stream" in data:
                    self.cutter.continued.set()
                seen = data if b"event-stream" in data else seen + data
                writer.write(data)
                self.cutter.seen = seen
        except asyncio.CancelledError:
            pass  # the test ends
        finally:
            sending.cancel()
            upstream_writer.transport.abort()
            # Not `abort`, which would drop what was written.
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)


@dataclass
class _Client:
    """ResponseTransport that keeps what a client gets."""

    received: bytearray = field(default_factory=bytearray)
    congested = False

    def send(self, data: bytes) -> None:
        self.received += data

    async def wait_writable(self) -> None:
        pass


class MigratingClient:
    """Sends requests through the migrator, as a frontend process does."""

    def __init__(
        self, migrator: StreamMigrator, builder: RequestBuilder, router: RequestRouter,
        cutter: Cutter,
    ) -> None:  # fmt: skip
        self.migrator, self.router, self.cutter = migrator, router, cutter
        self._builder = builder

    @property
    def raw(self) -> bytes:
        """The last stream that was not cut, as an engine sent it, with its head."""
        return self.cutter.seen

    async def whole(self, path: str, body: Json) -> Json:
        """Return the response to a request that is not streamed."""
        found: Json = json.loads(await self._send(path, body, b"\r\n\r\n"))
        return found

    async def stream(self, path: str, body: Json, *cuts: int) -> list[Json]:
        """Return the chunks of a stream. Each cut closes one connection after as many bytes."""
        body = body | {"stream_options": {"include_usage": True}}
        content = await self.content(path, body, *cuts)
        data = [line[6:] for line in content.splitlines() if line.startswith(b"data: ")]
        assert data.count(b"[DONE]") == 1
        assert data.pop() == b"[DONE]"
        return [json.loads(each) for each in data]

    async def content(self, path: str, body: Json, *cuts: int) -> bytes:
        """Return a stream as the client receives it."""
        self.cutter.after = [*cuts]
        content = await self._send(path, body | {"stream": True})
        assert not self.cutter.after, "it was not cut"
        return content

    async def unbroken(self, path: str, body: Json, whole: Json, *cuts: int) -> None:
        """Cut a stream; assert that the client gets the same as `whole`, a response."""
        if path in FORM:
            assert_unbroken_events(path, await self.content(path, body, *cuts), whole)
        else:
            assert_unbroken(await self.stream(path, body, *cuts), whole)

    async def _send(self, path: str, body: Json, start: bytes = b"") -> bytes:
        client = _Client()
        writer = ResponseWriter(client, keep_alive=True, http10=True, head_only=False)
        content = json.dumps(body).encode()
        context = RequestContext(context_tokens=CONTEXT_TOKENS)
        request = await self._builder.build(path, content, {**read_fields(content)}, context)
        record = StreamRecord() if self.migrator.records(request) else None
        await self.migrator.run(request, ResponseRelay(writer, FrontendStats(), record))
        return bytes(client.received).partition(b"\r\n\r\n")[2]


@asynccontextmanager
async def migrating(
    config: Config, protocol: PdProtocol, engines: list[tuple[Role, str]], key: str,
    tokenizer: Preprocessor | None = None,
) -> AsyncIterator[MigratingClient]:  # fmt: skip
    """Yield a client of these engines. Streams of decode and aggregated workers can be cut."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(HttpClient.bearer(key))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        split = any(role is Role.prefill for role, _ in engines)
        kind = TopologyKind.disaggregated if split else TopologyKind.aggregated
        config_of_router = RouterConfig(conditional_disaggregation=False)
        router = RequestRouter(kind, config_of_router, AdmissionLimits(avoid_s=0.05))
        cutter = Cutter()
        for rank, (role, url) in enumerate(engines):
            if role is not Role.prefill:
                host, _, port = url.removeprefix("http://").partition(":")
                proxy = CuttingProxy(host, int(port), cutter)
                server = await asyncio.start_server(proxy.forward, "127.0.0.1", 0)
                stack.callback(server.close)
                url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await router.add_worker(rank, role, url)
        dispatcher = Dispatcher(router, protocol, client, tasks)
        builder = RequestBuilder(config, tokenizer)
        migrator = StreamMigrator(dispatcher, builder, limit=3, ask_engine=tokenizer is None)
        yield MigratingClient(migrator, builder, router, cutter)


def text_of(answer: Json | list[Json]) -> str:
    """Return the text of a whole response or of the chunks of a stream."""
    chunks = answer if isinstance(answer, list) else [answer]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    found = (
        c.get("text") or (c.get("delta") or c.get("message") or {}).get("content") for c in choices
    )
    return "".join(text or "" for text in found)


def assert_unbroken(chunks: list[Json], whole: Json, *, log_probabilities: bool = True) -> None:
    """Assert that a stream has the content of an undisturbed response."""
    choice = whole["choices"][0]
    assert text_of(chunks) == text_of(whole)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len({chunk["object"] for chunk in chunks}) == 1
    choices = [c for chunk in chunks for c in chunk["choices"]]
    assert sum("role" in c.get("delta", {}) for c in choices) == ("message" in choice)
    reasons = [c["finish_reason"] for c in choices if c["finish_reason"]]
    assert reasons == [choice["finish_reason"]]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [_counts(usage) for usage in usages] == [_counts(whole["usage"])]
    if log_probabilities:
        tokens = [row for c in choices for row in (c.get("logprobs") or {}).get("content") or ()]
        assert tokens == ((choice.get("logprobs") or {}).get("content") or [])


def _counts(usage: Json) -> list[int]:
    return [usage[f"{name}_tokens"] for name in ("prompt", "completion", "total")]
