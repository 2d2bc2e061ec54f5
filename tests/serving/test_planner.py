"""Workers change their role while requests go on, none of which may fail."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.config import Role
from hpc_dynamo.planner.records import Flip, Record, read
from tests.runs import until
from tests.serving.served import MODEL, Served, serving

SOON_S = 60.0
SHAPE = ("topology.prefill.workers=2", "topology.decode.workers=2", "router.local_prefill=false")
SLOW = ("engine.args.timing=h100-8b", "engine.args.time-scale=8", "engine.args.num-blocks=512")
PLANNER = (
    *("planner.by=load", "planner.interval_s=0.5", "planner.patience=1"),
    *("planner.queue_high_s=0.2", "planner.kv_high=0.3", "planner.kv_low=0.05"),
)


@pytest.fixture(scope="module", params=["turn", "restart"])
def reshaped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[Served]:
    """Its engines take either role as they are, or are started anew."""
    restart = f"planner.restart={str(request.param == 'restart').lower()}"
    words = (*SHAPE, *SLOW, *PLANNER, restart, f"model.path={model_folder}")
    with serving(tmp_path_factory.mktemp("reshaped"), *words) as served:
        yield served


def records(served: Served) -> list[Record]:
    return read(served.attempt.planner_file)


def flips(served: Served, new: Role) -> list[Flip]:
    return [r.flip for r in records(served) if r.flip and r.flip.new is new and not r.flip.why]


class Load:
    """Clients that ask one after the other until they are told to stop; what they got."""

    def __init__(self, served: Served, prompt_tokens: int, max_tokens: int) -> None:
        self._body: dict[str, Any] = {
            "model": MODEL, "max_tokens": max_tokens, "stream": True,
            "extra_body": {"ignore_eos": True},
        }  # fmt: skip
        self._served, self._prompt = served, "x" * prompt_tokens
        self._stop = asyncio.Event()
        self.pieces = list[int]()  # of each answer

    async def run_until(self, done: Callable[[], object], clients: int) -> None:
        async with self._served.asynchronous() as client, asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._ask(client, number))
            try:
                await asyncio.to_thread(until, "a flip", done, SOON_S)
            finally:
                self._stop.set()

    async def _ask(self, client: Any, number: int) -> None:
        turn = 0
        while not self._stop.is_set():
            prompt = f"{number}.{turn} {self._prompt}"
            stream = await client.completions.create(**self._body, prompt=prompt)
            self.pieces.append(sum([1 async for chunk in stream if chunk.choices]))
            turn += 1


async def test_roles_follow_the_load_both_ways(reshaped: Served) -> None:
    prompts = Load(reshaped, prompt_tokens=6000, max_tokens=1)
    await prompts.run_until(lambda: flips(reshaped, Role.prefill), clients=6)
    answers = Load(reshaped, prompt_tokens=16, max_tokens=300)
    await answers.run_until(lambda: flips(reshaped, Role.decode), clients=24)
    assert prompts.pieces
    assert answers.pieces
    assert set(answers.pieces) == {300}
