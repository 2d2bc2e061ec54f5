"""Soak benchmark: a short run with a job, its error counts and its checks."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.soak.checks import checks, memory_growth
from benchmarks.soak.clients import STREAMED, LoadClients
from benchmarks.soak.results import ProcessUsage, SoakResults, SoakSample
from hpc_dynamo.http import HttpClient, HttpRequest, HttpServer, ResponseWriter
from tests.support.runs import HANG_S, until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
LEASE = "engine.args.kv-lease-s=2"  # blocks of disconnected clients are freed soon


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model folder whose tokens are bytes."""
    folder = tmp_path / "model"
    folder.mkdir()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"max_position_embeddings": 8192}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def soak(model: Path, *words: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "benchmarks.soak", "--capacity", "30", "--model", str(model)]
    env = {**os.environ, "TMPDIR": str(model.parent)}
    return subprocess.Popen(
        [*argv, *words, LEASE], cwd=ROOT, env=env, stdout=-1, stderr=-1, text=True
    )


@pytest.mark.slow
def test_seconds_of_it(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    words = ("--minutes", "0.1", "--leave", "0.3", "--frontends", "2", "--json", str(file))
    with soak(model, *words) as running:
        out, err = running.communicate(timeout=HANG_S)
    assert running.returncode == 0, out + err
    found = msgspec.json.decode(file.read_bytes(), type=SoakResults)
    assert found.sent > 50
    assert found.disconnected > 5
    assert any(sample.rate_hz > 0 for sample in found.samples)
    names = {"head", "frontend 0", "frontend 1", "prefill", "decode"}
    assert set(found.end) == set(found.samples[0].processes) == names
    assert all(p.rss_mib > p.pss_mib > 5 and p.fds > 3 for p in found.end.values())
    assert found.gauges["open_connections"] == 0
    assert found.gauges["decode worker_requests_running"] == 0
    assert found.gauges["requests_cancelled_total"] > 0
    assert "FAILED" not in out


def test_ctrl_c_ends_the_job_and_prints_what_there_is(model: Path, tmp_path: Path) -> None:
    announced = "*/soak/attempts/1/endpoint.json"
    with soak(model, "--minutes", "30") as running:
        until("the job", lambda: running.poll() is not None or list(tmp_path.glob(announced)))
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=HANG_S)
    assert running.returncode == 130, out + err
    assert "interrupted" in err
    assert "the run is complete" in out
    assert list(tmp_path.glob("*/soak/attempts/1/outcome.json"))


async def asked_of(
    status: int, body: bytes, leave: float = 0.0, wait_s: float = 0.0
) -> LoadClients:
    """Return clients that sent requests to a server with a fixed response."""

    async def answer(request: HttpRequest, reply: ResponseWriter) -> None:
        await asyncio.sleep(wait_s)
        reply.send(status, body)

    async with HttpServer(answer) as server:
        url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
        async with HttpClient() as http:
            clients = LoadClients(http, url, lambda stream: b"{}", leave)
            await clients.closed_loop(0.3)
    return clients


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (503, b"no worker", "status 503"),
        (200, b'data: {"error": "lost"}\n\n', "not whole"),
        (200, b'{"completion_tokens":%d}' % (STREAMED - 1), "not whole"),
    ],
)
async def test_what_counts_as_an_error(status: int, body: bytes, kind: str) -> None:
    clients = await asked_of(status, body)
    assert set(clients.errors) == {kind}
    assert clients.errors[kind] == clients.sent > 0
    assert clients.first_error.startswith(kind)
    assert clients.answered == 0


async def test_a_refused_connection_is_an_error() -> None:
    async with HttpClient() as http:
        clients = LoadClients(http, "http://127.0.0.1:1", lambda stream: b"{}", 0.0)
        await clients.open_loop(100, 0.2)
    assert clients.errors["ConnectionRefusedError"] == clients.sent > 0


async def test_the_wanted_share_goes_away() -> None:
    clients = await asked_of(200, b"never seen", leave=1.0, wait_s=5)
    assert clients.disconnected == clients.sent > 0  # the number depends on the machine
    assert not clients.errors


def found(grows_mib_h: float, minutes: float = 30, **end: float) -> SoakResults:
    process = ProcessUsage(1, 100.0, 90.0, 20, 5)
    samples = [
        SoakSample(
            t, 9.0, 0.1, 0, {}, (1, 2), (1, 2), (1, 2), {"requests_running": 1.0}, {"head": now}
        )
        for t in range(10, int(minutes * 60), 10)
        for now in [ProcessUsage(1, 100.0 + grows_mib_h * t / 3600, 90.0, 20, 5)]
    ]
    here = {"head": process}
    return SoakResults(
        minutes, samples=samples, start=here, end=here, gauges={"requests_running": 0.0, **end}
    )


def failed(found: SoakResults) -> list[str]:
    return [name for name, _, good in checks(found) if not good]


def test_the_verdict() -> None:
    assert failed(found(1.0)) == []
    assert failed(found(100.0)) == ["memory grows by less than 20 MiB/h"]
    assert failed(found(100.0, minutes=1)) == []
    assert failed(found(0.0, requests_running=1.0, requests_rejected_total=3.0)) == [
        "all resources are released"
    ]
    assert failed(SoakResults(30)) == ["the run is complete"]
    other = found(0.0)
    other.end = {"head": ProcessUsage(2, 100.0, 90.0, 60, 5)}
    other.errors = {"status 500": 1}
    assert failed(other) == ["no errors", "the same processes", "no more file descriptors"]


def test_the_slope_is_of_the_last_two_thirds() -> None:
    assert memory_growth(found(7.0).samples, "head") == pytest.approx(7.0)
