"""Interface of targets: name, base URL and processes."""

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
    """Kind of backend: whole responses, or streams of tokens."""

    ANSWERS = "one-token responses"
    FAST = "streams, every token as soon as the last is sent"
    PACED = "streams, a token every 20 ms"

    @property
    def step_s(self) -> float:
        """Return the time between two tokens of a stream."""
        return 0.02 if self is BackendKind.PACED else 0.0


@dataclass(frozen=True)
class TargetPids:
    """Process ids of a target; child processes count with their parents."""

    frontend: Sequence[int]  # HTTP, preprocessing and routing, which are compared
    backend: Sequence[int]  # engines or fake engines


class Target(Protocol):
    """Target under test. `stop` is called also if `start` fails, and may be called twice."""

    name: str
    version: str
    key: str  # bearer token, or empty
    uses_floor_backend: bool  # uses the same backend as `FixedBackend`

    async def start(self) -> str:
        """Start all processes, wait until a request is served; return the URL without /v1."""

    async def stop(self) -> None:
        """Stop all processes."""

    def pids(self) -> TargetPids: ...


async def wait_until_served(url: str, key: str, group: ProcessGroup) -> None:
    """Return when a chat completion returns a token.

    Raises ProcessExited if a process of the group exits, EngineError after READY_S.
    """
    deadline, seen = time.monotonic() + READY_S, "nothing"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        while time.monotonic() < deadline:
            group.check()
            seen = await _ask(session, url, key)
            if not seen:
                return
            await asyncio.sleep(POLL_INTERVAL_S)  # peers do not report readiness
    what = f"{url} served no request within {READY_S:.0f} s, last answer: {seen}"
    raise EngineError(what, log=group.folder)


async def _ask(session: aiohttp.ClientSession, url: str, key: str) -> str:
    """Return the error of a request; empty if it returns a token."""
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
