"""Simulator ranks as real child processes, and a client for them."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

KEY = "secret-of-the-tests"
MODEL = "demo"
TIMEOUT_S = 60.0  # only for hangs
REPORT_CACHED = "--enable-prompt-tokens-details"
Body = dict[str, Any]


@dataclass(frozen=True)
class Rank:
    """One running simulator."""

    process: "subprocess.Popen[str]"
    url: str


@contextmanager
def simulator(*options: str, key: str = KEY) -> Iterator[Rank]:
    """Start a rank and wait until it listens. Fails with its log if it exits before."""
    argv = [sys.executable, "-m", "hpc_dynamo.simulator", "--model", MODEL, *options]
    if "--timing" not in options:
        argv += ["--timing", "instant"]
    env = os.environ | {"HPC_DYNAMO_ENGINE_KEY": key}
    out, err = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(argv, env=env, text=True, stdout=out, stderr=err) as process:
        try:
            assert process.stderr
            lines = list[str]()
            for line in process.stderr:
                lines.append(line)
                found = re.search(r"listening on (http://\S+)", line)
                if found:
                    yield Rank(process, found[1])
                    return
            pytest.fail(f"{argv} ended early: {''.join(lines)}")
        finally:
            process.kill()


class Client:
    """Sends requests with the key and returns (status, body)."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def post(self, rank: Rank, path: str, body: Body) -> tuple[int, Body]:
        async with self.session.post(rank.url + path, json=body) as answer:
            return answer.status, await answer.json()

    async def complete(self, rank: Rank, prompt: Any, **fields: Any) -> Body:
        body = {"model": MODEL, "prompt": prompt, **fields}
        status, answer = await self.post(rank, "/v1/completions", body)
        assert status == 200, answer
        return answer

    async def text(self, rank: Rank, prompt: Any, **fields: Any) -> str:
        return str((await self.complete(rank, prompt, **fields))["choices"][0]["text"])

    async def prefilled(self, rank: Rank, prompt: Any) -> Body:
        """Prefill a prompt on `rank` and return its kv_transfer_params."""
        ask = {"do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None}
        answer = await self.complete(rank, prompt, max_tokens=1, kv_transfer_params=ask)
        return dict(answer["kv_transfer_params"])

    async def metric(self, rank: Rank, name: str) -> float:
        async with self.session.get(f"{rank.url}/metrics") as answer:
            text = await answer.text()
        found = re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", text, re.MULTILINE)
        assert found, f"no {name} in {text}"
        return sum(map(float, found))

    async def until(self, rank: Rank, name: str, value: float | None) -> None:
        """Poll a metric until it has a value. None: any value except zero."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                now = await self.metric(rank, name)
                if now == value or (value is None and now):
                    return
                await asyncio.sleep(0.01)

    async def until_some(self, rank: Rank, name: str) -> None:
        await self.until(rank, name, None)

    async def until_zero(self, rank: Rank, name: str) -> None:
        await self.until(rank, name, 0)
