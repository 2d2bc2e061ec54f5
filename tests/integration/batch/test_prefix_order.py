"""Order of a batch: requests with shared prefixes go to the worker that has them cached."""

import asyncio
import json
import random
from array import array
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.batch.input_file import BatchInput, read_input
from hpc_dynamo.batch.prefix_order import PrefixOrder, prefix_groups, prefix_key
from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.config import Router as RouterConfig
from hpc_dynamo.json_reader import read_fields
from hpc_dynamo.router import RequestRouter, RoutingRequest, block_hashes
from tests.support.runs import SIMULATOR, hpc_dynamo, latest, write_lines
from tests.support.tiny_models import byte_tokenizer

Body = dict[str, Any]
WORKERS = 4


def ids(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(1000, 100_000), k=count)


def grouped(*sizes: int, prefix: int = 4000, own: int = 60) -> list[Body]:
    """Return prompts of token ids in groups with one prefix each, in random order."""
    groups = [n for n, size in enumerate(sizes) for _ in range(size)]
    random.Random(7).shuffle(groups)
    prompts = [ids(prefix, seed=n) + ids(own, seed=1000 + i) for i, n in enumerate(groups)]
    return [{"prompt": prompt, "max_tokens": 8} for prompt in prompts]


def requests_of(folder: Path, bodies: Sequence[Body]) -> BatchInput:
    write_lines(folder / "prompts.jsonl", bodies)
    return read_input(folder / "prompts.jsonl")


async def taken(
    requests: BatchInput, workers: int = WORKERS, ready: Callable[[], int] = lambda: WORKERS
) -> list[int]:
    """Return the lines in the order in which they are taken, counted from 0."""
    lines = {entry.custom_id: line for line, entry in enumerate(requests.entries)}
    with requests.open() as reader:
        order, found = PrefixOrder(requests.entries, reader, workers, ready), list[int]()
        while next_one := await order.take():
            found.append(lines[next_one.entry.custom_id])
            order.done(next_one)
    return found


async def computed(bodies: Sequence[Body], order: Sequence[int], workers: int = WORKERS) -> int:
    """Return the prompt tokens that workers compute if all requests are in flight at once."""
    router = RequestRouter(TopologyKind.aggregated, RouterConfig(recompute_weight=2.0))
    for rank in range(workers):
        await router.add_worker(rank, Role.aggregated, f"http://worker-{rank}")
    total = 0
    for line in order:
        tokens = array("I", bodies[line]["prompt"])
        hashes = block_hashes(tokens.tobytes(), 16)
        ask = RoutingRequest(prompt_tokens=len(tokens), block_hashes=hashes)
        left = {worker.rank: worker.left_tokens for worker in router.explain(ask).workers}
        lease = router.try_route(ask)
        assert lease
        total += left[lease.decode.rank]
    return total


@pytest.mark.parametrize(
    "sizes",
    [
        (20, 20, 20, 20),
        (15, 18, 23, 24),
        (11, 17, 25, 27),
        (80,),
        (40, 40),
        (10,) * 8,
        (5,) * 16,
        (1,) * 80,
    ],
    ids=str,
)
async def test_each_prefix_is_computed_about_once(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """No prefix is computed on more workers than an even distribution requires."""
    bodies = grouped(*sizes)
    order = await taken(requests_of(tmp_path, bodies))
    assert sorted(order) == list(range(80))
    copies = (await computed(bodies, order) - 80 * 60) / 4000
    assert copies <= max(len(sizes), WORKERS) + 0.1


async def test_nested_prefixes_are_neighbours(tmp_path: Path) -> None:
    """Prompts have a system prompt, a document and a question; each document is computed once."""
    system, docs = ids(800, seed=1), [ids(1600, seed=10 + n) for n in range(8)]
    bodies: list[Body] = [
        {"prompt": system + docs[i % 8] + ids(40, seed=100 + i)} for i in range(64)
    ]
    order = await taken(requests_of(tmp_path, bodies))
    best = WORKERS * 800 + 8 * 1600 + 64 * 40
    assert await computed(bodies, order) <= best + 800


async def test_one_ready_worker_opens_one_group(tmp_path: Path) -> None:
    requests, ready = requests_of(tmp_path, grouped(20, 20, 20, 20)), 1
    prompts = [json.loads(line)["prompt"] for line in requests.file.read_text().splitlines()]
    with requests.open() as reader:
        order = PrefixOrder(requests.entries, reader, WORKERS, lambda: ready)
        first = [await order.take() for _ in range(20)]
        begun = {prompts[requests.entries.index(each.entry)][0] for each in first if each}
        assert len(begun) == 1, "the ready worker gets one prefix only"
        waiting = asyncio.ensure_future(order.take())
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        ready = 2
        assert await waiting, "a second worker gets a run of its own"


async def test_lost_worker_does_not_stop_the_batch(tmp_path: Path) -> None:
    order = await taken(requests_of(tmp_path, grouped(20, 20)), ready=lambda: 1)
    assert sorted(order) == list(range(40))
    assert await taken(requests_of(tmp_path, grouped(3)), ready=lambda: 0)


async def test_order_without_kv_routing_is_that_of_the_input(tmp_path: Path) -> None:
    assert await taken(requests_of(tmp_path, grouped(3, 3)), workers=0) == list(range(6))


def test_windows_bound_memory_and_keep_every_request(tmp_path: Path) -> None:
    requests = requests_of(tmp_path, [{"prompt": f"{i % 7} {i}"} for i in range(20_000)])
    assert sorted(asyncio.run(taken(requests))) == list(range(20_000))


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ({"prompt": "abc def"}, {"prompt": "abc xyz"}, "abc "),
        ({"prompt": [1, 2, 3]}, {"prompt": [1, 2, 9]}, "1, 2, "),
        ({"prompt": ["abc def", "z"]}, {"prompt": "abc xyz"}, "abc "),
        ({"prompt": [[1, 2, 3]]}, {"prompt": [1, 2, 9]}, "1, 2, "),
        ({"messages": [{"content": "s a"}]}, {"messages": [{"content": "s b"}]}, "s "),
        ({"tools": [{"a": 1}], "messages": []}, {"tools": [{"a": 2}], "messages": []}, "a"),
        ({"input": "an embedding"}, {"input": "another"}, ""),
        ({"prompt": "\ud83d x"}, {"prompt": "\ud83d y"}, "ud83d"),
    ],
)
def test_prefix_keys_share_prefixes_of_prompts(one: Body, other: Body, shared: str) -> None:
    keys = [prefix_key(read_fields(json.dumps(body).encode())) for body in (one, other)]
    common = takewhile(lambda pair: pair[0] == pair[1], zip(*keys, strict=False))
    assert shared.encode() in bytes(pair[0] for pair in common)


def test_prefix_groups_are_at_most_as_many_as_prompts() -> None:
    assert prefix_groups([b"a"], 4) == [[0]]
    assert sorted(i for run in prefix_groups([b"b", b"a", b"c"], 4) for i in run) == [0, 1, 2]
    assert prefix_groups([], 4) == []


def chats(systems: int = 4, requests: int = 80) -> list[Body]:
    """Return chats with alternating long system prompts."""
    texts = [" ".join(map(str, ids(400, seed=n))) for n in range(systems)]
    return [
        {
            "messages": [
                {"role": "system", "content": texts[i % systems]},
                {"role": "user", "content": f"question {i}"},
            ],
            "max_tokens": 8,
        }
        for i in range(requests)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bodies", "model"),
    [
        (grouped(15, 18, 23, 24), False),
        (chats(), False),  # the simulator's own tokenizer
        (chats(), True),
    ],
    ids=["ids", "simulator", "tokenizer"],
)
def test_batch_finds_shared_prefixes_in_cache(
    tmp_path: Path, bodies: list[Body], model: bool
) -> None:
    """80 prompts with 4 prefixes on 4 workers: 94 % of the tokens need not be computed."""
    write_lines(tmp_path / "prompts.jsonl", bodies)
    argv = [*SIMULATOR, "topology=aggregated", f"topology.aggregated.workers={WORKERS}"]
    if model:
        argv.append(f"model.path={byte_tokenizer(tmp_path / 'model')}")
    done = hpc_dynamo("batch", *argv, "input=prompts.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = latest(tmp_path / "runs/prompts").outcome()
    assert outcome is not None
    assert outcome.summary is not None
    progress = outcome.summary.progress
    assert progress.cached_tokens / progress.prompt_tokens >= 0.92
    assert "% cached" in done.stdout
    assert "notice" not in done.stdout
