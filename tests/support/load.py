"""Clients that send requests one after another and count their output."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

from hpc_dynamo import jsonl
from hpc_dynamo.config import Role
from hpc_dynamo.planner.records import PlannerRecord, RoleChange
from hpc_dynamo.run import Attempt
from tests.support.runs import BUSY_FACTOR, until

SOON_S = 100.0


@dataclass
class Load:
    """Streams of `max_tokens` with unique prompts of `prompt_words`. A failure ends the load."""

    url: str
    key: str
    model: str
    prompt_words: int
    max_tokens: int
    pieces: list[int] = field(default_factory=list)  # one per response

    async def run_until(
        self, done: Callable[[], object], clients: int, timeout_s: float = SOON_S
    ) -> None:
        """Send requests until `done` returns true, then finish the open ones."""
        async with self.running(clients):
            await wait(done, timeout_s)

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[None]:
        """Send requests meanwhile, then finish the open ones."""
        stop = asyncio.Event()
        client = openai.AsyncOpenAI(
            base_url=self.url, api_key=self.key, max_retries=0, timeout=BUSY_FACTOR * SOON_S
        )
        async with client, asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._ask(client, number, stop))
            try:
                yield
            finally:
                stop.set()

    async def _ask(self, client: openai.AsyncOpenAI, number: int, stop: asyncio.Event) -> None:
        text, turn = "word " * self.prompt_words, 0
        while not stop.is_set():
            body: Any = {"model": self.model, "prompt": f"{number}.{turn} {text}", "stream": True}
            more = {"ignore_eos": True}
            stream = await client.completions.create(
                **body, max_tokens=self.max_tokens, extra_body=more
            )
            choices = [chunk.choices[0] async for chunk in stream if chunk.choices]
            assert choices[-1].finish_reason == "length", "an answer was cut short"
            self.pieces.append(len(choices))
            turn += 1


async def wait(done: Callable[[], object], timeout_s: float = SOON_S) -> None:
    """Wait for `done` while the clients of this event loop send requests."""
    await asyncio.to_thread(
        until, f"{getattr(done, '__qualname__', done)} under load", done, timeout_s
    )


def flips(attempt: Attempt, new: Role) -> list[RoleChange]:
    """Return the completed role changes into a role."""
    records = jsonl.read(attempt.planner_file, PlannerRecord)
    found = [r.role_change for r in records if r.role_change]
    return [flip for flip in found if flip.new is new and not flip.reason]
