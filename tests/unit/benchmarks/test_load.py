"""Load generators of benchmarks.frontend count the responses of a small server."""

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.common.processes import ProcessExited, ProcessGroup
from benchmarks.common.workload import CONVERSATIONS, KINDS, Workload, corpus, workload
from benchmarks.frontend import streams
from benchmarks.frontend.load import Load, measure, warm_up
from benchmarks.frontend.peers import FixedBackend
from benchmarks.frontend.results import Results, tables
from benchmarks.frontend.targets import BackendKind
from hpc_dynamo.errors import ConfigError

needs_wrk = pytest.mark.skipif(not shutil.which("wrk"), reason="apt-get install wrk")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer with one token per word."""
    words = sorted({word for sentence in corpus() for word in sentence.split()})
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["?", *words])}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    file = tmp_path_factory.mktemp("model") / "tokenizer.json"
    made.save(str(file))
    return file


@pytest.fixture(params=[BackendKind.FAST, BackendKind.PACED])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FixedBackend]:
    backend = FixedBackend(tmp_path / "backend", request.param)
    yield backend
    await backend.stop()


def messages(body: bytes) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(body)["messages"]
    return found


def bodies(work: Workload, count: int = 40) -> list[bytes]:
    draw = random.Random(7)
    return [work.body(draw) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [100, 1200, 8000])
def test_prompts_have_about_the_wanted_length(kind: str, tokens: int, tokenizer: Path) -> None:
    work = workload(kind, tokens, tokenizer, answer=1, stream=False)
    lengths = [sum(len(m["content"].split()) + 5 for m in messages(body)) for body in bodies(work)]
    assert sum(lengths) / len(lengths) == pytest.approx(tokens, rel=0.25)


def test_kinds_share_what_they_say(tokenizer: Path) -> None:
    same, shared, unique = (
        bodies(workload(kind, 1200, tokenizer, answer=1, stream=False)) for kind in KINDS
    )
    assert len(set(same)) == 1
    assert len({messages(b)[0]["content"] for b in shared}) <= CONVERSATIONS
    assert len(set(shared)) == len(shared)
    assert len({messages(b)[0]["content"].split(".")[0] for b in unique}) == len(unique)


def test_a_conversation_was_opened_before(tokenizer: Path) -> None:
    work = workload("shared", 1200, tokenizer, answer=1, stream=False)
    opened = [messages(body) for body in work.openings()]
    assert all(messages(body)[:2] in opened for body in bodies(work))


def test_unknown_workload_lists_the_known(tokenizer: Path) -> None:
    with pytest.raises(ConfigError, match="shared"):
        workload("mixed", 100, tokenizer, answer=1, stream=False)


async def test_streams_count_every_token(
    backend: FixedBackend, tokenizer: Path, tmp_path: Path
) -> None:
    url = await backend.start()
    load = Load("shared", 100, 3, 7, backend.kind, 1)
    figure = await measure(backend, url, load, tokenizer, tmp_path)
    assert figure.streamed
    assert figure.errors == 0
    assert figure.requests >= 3
    assert figure.tokens == figure.streamed.usage_tokens == 7 * figure.requests
    assert figure.cost.peak_mib > 1
    found = Results()
    found.add(backend, load, figure)
    assert [table.row_count for table in tables(found)] == [1]


@needs_wrk
async def test_wrk_sends_requests_of_workload(tokenizer: Path, tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            seen.append(head + await reader.readexactly(int(_header(head, b"content-length"))))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    backend = FixedBackend(tmp_path / "none", BackendKind.FAST)
    load = Load("shared", 1200, 2, 1, BackendKind.ANSWERS, 1)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await warm_up(backend, url, load, tokenizer, tmp_path)
        figure = await measure(backend, url, load, tokenizer, tmp_path)
    assert 0 < figure.requests <= len(seen)
    assert figure.errors == 0
    assert figure.p99_ms >= figure.p50_ms > 0
    sent = [messages(request.partition(b"\r\n\r\n")[2]) for request in seen]
    opened = {m[0]["content"] for m in sent[:CONVERSATIONS]}
    assert {m[0]["content"] for m in sent} == opened
    assert len({m[-1]["content"] for m in sent[-20:]}) == 20


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


def _header(head: bytes, name: bytes) -> bytes:
    return next(
        v for k, _, v in (h.partition(b": ") for h in head.split(b"\r\n")) if k.lower() == name
    )


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\ndata: x\n\n"],
)
async def test_a_refused_or_cut_stream_is_an_error(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _head(reader)
        writer.write(reply)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        found = await streams.run(url, 2, 0.2, _request(url))
    assert found.errors >= 2
    assert found.streams == found.tokens == 0


def _request(url: str) -> Callable[[], bytes]:
    return lambda: streams.post(url, "key", b"{}")


async def test_exited_program_is_reported_with_its_log(tmp_path: Path) -> None:
    group = ProcessGroup(tmp_path)
    await group.start("short", ["sh", "-c", "echo no such port; exit 7"])
    with pytest.raises(ProcessExited, match=r"exit code 7.*no such port"):
        await _checked_for_ever(group)
    await group.stop()


async def _checked_for_ever(group: ProcessGroup) -> None:
    async with asyncio.timeout(60):
        while True:
            group.check()
            await asyncio.sleep(0.01)
