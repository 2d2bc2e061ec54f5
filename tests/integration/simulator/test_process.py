"""The process: start, exit and injected failures."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import aiohttp
import pytest

from tests.support.runs import HANG_S
from tests.support.simulator import Body, Client, Rank


def run(*options: str, model: str = "demo") -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "hpc_dynamo.simulator", "--model", model, *options]
    return subprocess.run(argv, capture_output=True, text=True, timeout=HANG_S, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("role", ["aggregated", "prefill"])
async def test_signal_stops_busy_rank_long_before_its_request_ends(
    client: Client, start: Callable[..., Rank], role: str, number: signal.Signals
) -> None:
    rank = start("--role", role, "--timing", "cpu-135m")
    # 100 s of decoding.
    body = {"prompt": "long", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    async with client.session.post(f"{rank.url}/v1/completions", json=body) as answer:
        await answer.content.readany()
        began = time.monotonic()
        rank.process.send_signal(number)
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    assert rank.process.wait(60) == 0
    assert time.monotonic() - began < 60


def test_signal_stops_rank_before_it_serves() -> None:
    argv = [sys.executable, "-m", "hpc_dynamo.simulator", "--model", "demo"]
    with subprocess.Popen([*argv, "--start-delay-s", "90"], stderr=subprocess.PIPE) as process:
        assert process.stderr
        assert b"waiting 90 s" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_injected_start_delay_and_failure(start: Callable[..., Rank]) -> None:
    began = time.monotonic()
    start("--start-delay-s", "0.7")
    assert time.monotonic() - began > 0.7
    failed = run("--fail-start")
    assert failed.returncode == 1
    assert "EngineError: failure injected by --fail-start" in failed.stderr


async def test_injected_failures_of_requests(client: Client, start: Callable[..., Rank]) -> None:
    rank = start("--fail-after-requests", "2")
    for _ in range(2):
        await client.complete(rank, "still here")
    with pytest.raises(aiohttp.ClientError):
        await client.complete(rank, "too much")
    assert rank.process.wait(30) == -signal.SIGKILL
    rank = start("--fail-request-rate", "0.5")
    answers = [await client.post(rank, "/v1/completions", {"prompt": "x"}) for _ in range(40)]
    assert {status for status, _ in answers} == {200, 500}


async def read(client: Client, rank: Rank, body: Body, got: list[bytes]) -> None:
    async with client.session.post(f"{rank.url}/v1/completions", json=body) as answer:
        async for part in answer.content.iter_any():
            got.append(part)


@pytest.mark.parametrize("stream", [True, False])
async def test_injected_exit_during_output(
    client: Client, start: Callable[..., Rank], stream: bool
) -> None:
    rank, got = start("--die-after-tokens", "3"), list[bytes]()
    await client.complete(rank, "short enough", max_tokens=3, ignore_eos=True)
    body = {"prompt": "long", "max_tokens": 9, "ignore_eos": True, "stream": stream}
    with pytest.raises(aiohttp.ClientError):
        await read(client, rank, body, got)
    assert b"".join(got).count(b"data: ") == (3 if stream else 0)
    assert rank.process.wait(30) == 1


async def test_injected_stall_during_output(client: Client, start: Callable[..., Rank]) -> None:
    rank, got = start("--stall-after-tokens", "3"), list[bytes]()
    await client.complete(rank, "short enough", max_tokens=3, ignore_eos=True)
    body = {"prompt": "long", "max_tokens": 9, "ignore_eos": True, "stream": True}
    asking = asyncio.create_task(read(client, rank, body, got))
    await client.until(rank, "generation_tokens_total", 6)
    await asyncio.wait([asking], timeout=0.2)
    assert not asking.done()
    assert b"".join(got).count(b"data: ") == 3
    assert await client.metric(rank, "num_requests_running") == 1
    asking.cancel()
    await client.until_zero(rank, "num_requests_running")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timing", "h200-8b"], "did you mean 'h100-8b'"),
        (["--timing", "nothing.json"], "nothing.json: cannot be read"),
        (["--num-blocks", "10"], "do not fit into the KV cache of 160"),
        (["--max-num-batched-tokens", "8"], "at least 64"),
        (["--kv-bytes-per-token", "1"], "no multiple of 32"),
    ],
)
def test_contradictory_options_are_rejected(options: list[str], message: str) -> None:
    refused = run(*options)
    assert refused.returncode == 3
    assert message in refused.stderr


def test_used_port_is_reported(aggregated: Rank) -> None:
    failed = run("--port", aggregated.url.rpartition(":")[2])
    assert failed.returncode == 1
    assert "in use" in failed.stderr


def test_help_shows_roles_and_key_variable() -> None:
    text = run("--help").stdout
    assert "--role decode" in text
    assert "HPC_DYNAMO_ENGINE_KEY" in text
