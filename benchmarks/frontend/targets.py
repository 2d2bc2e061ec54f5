"""What is measured: a name, a base URL, and which processes do whose work."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import aiohttp

from benchmarks.common.processes import ProcessGroup
from benchmarks.common.workload import MODEL
from hpc_dynamo.errors import EngineError

READY_S = 180.0
POLL_INTERVAL_S = 0.1


class BackendKind(Enum):
    """What answers behind a frontend: whole answers at once, or streams of tokens."""

    ANSWERS = "one-token answers"
    FAST = "streams, every token as soon as the last is sent"
    PACED = "streams, a token every 20 ms"

    @property
    def step_s(self) -> float:
        """The time between two tokens of a stream."""
        return 0.02 if self is BackendKind.PACED else 0.0


@dataclass(frozen=True)
class TargetPids:
    """The processes of a system, by whose work they do. Their children count with them."""

    frontend: Sequence[int]  # HTTP, pre-processing, routing: what is compared
    backend: Sequence[int]  # engines, or what stands for them


class Target(Protocol):
    """One system under test. `stop` is called however `start` ended, and may come twice."""

    name: str
    version: str
    key: str  # bearer token, "" where none is wanted
    uses_floor_backend: bool  # answers come from the same backend as those of `Backend` alone

    async def start(self) -> str:
        """Start everything and wait until a request was served; the base URL without /v1."""

    async def stop(self) -> None:
        """End every process."""

    def pids(self) -> TargetPids: ...


async def wait_until_served(url: str, key: str, group: ProcessGroup) -> None:
    """Return when a chat completion came back with a token.

    Raises Ended when a process of the group does, EngineError after READY_S.
    """
    deadline, seen = time.monotonic() + READY_S, "nothing"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        while time.monotonic() < deadline:
            group.check()
            seen = await _ask(session, url, key)
            if not seen:
                return
            await asyncio.sleep(POLL_INTERVAL_S)  # foreign programs announce nothing
    what = f"{url} served no request within {READY_S:.0f} s, last answer: {seen}"
    raise EngineError(what, log=group.folder)


async def _ask(session: aiohttp.ClientSession, url: str, key: str) -> str:
    """Empty when a token came, else what came instead."""
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as r:
            text = await r.text()
            return "" if r.status == 200 and _has_token(text) else f"{r.status} {text[:300]}"
    except (aiohttp.ClientError, TimeoutError) as e:
        return repr(e)


def _has_token(text: str) -> bool:
    return isinstance(json.loads(text)["choices"][0]["message"]["content"], str)
