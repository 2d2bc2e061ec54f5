"""Real KV events of real vLLM workers lead requests to the worker that has their prefix.

A worker keeps more prefixes in host memory than in its device cache.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.runs import until
from tests.support.vllm import provisioned
from tests.support.vllm_serve import MODEL, POLL_S, READY_S, Served, engine_pid, serving

pytestmark = pytest.mark.vllm

BLOCK = 128  # tokens, of vLLM's KV cache on the CPU
BLOCKS = 10  # per worker: room for two of these prompts
HOST_BLOCKS = 16
HOST_COST = 0.1  # default of router.tier_cost.host
LOADED = "vllm:external_prefix_cache_hits_total"
BLOCK_BYTES = 2**18  # with tiny_models.llama


def prompt(name: str) -> str:
    """Return a prompt of 385 to 511 tokens: three whole blocks."""
    return " ".join(f"{name} number {i} of the list." for i in range(100, 140))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two aggregated workers of a tiny model, with little room for prefixes."""
    vllm, folder = provisioned(), tmp_path_factory.mktemp("kv")
    tiny = replace(vllm, model=tiny_models.llama(folder / "tiny", vllm.model))
    words = [
        "topology=aggregated",
        "topology.aggregated.workers=2",
        "engine.args.max-model-len=1024",
        f"engine.args.num-gpu-blocks-override={BLOCKS}",
        "engine.max_num_seqs=2",
        f"engine.kv_host_cache_gb={HOST_BLOCKS * BLOCK_BYTES / 2**30}",
    ]
    with serving(tiny, folder, *words) as found:
        until("both workers", lambda: len(ready(found)) == 2, READY_S, POLL_S)
        yield found


def ready(served: Served) -> dict[int, str]:
    """URL by rank."""
    return {row["rank"]: row["url"] for row in served.rows() if row["state"] == "ready"}


def compute(served: Served, rank: int, text: str, tokens: int = 1) -> str:
    """Send a prompt to the worker itself, so that the router learns of it only from events. Return
    the answer."""
    body = {"model": MODEL, "prompt": text, "max_tokens": tokens, "temperature": 0}
    answer = served.post(f"{ready(served)[rank]}/v1/completions", served.token, body)
    return str(answer["choices"][0]["text"])


def where(served: Served, text: str) -> tuple[int, dict[int, int]]:
    """The worker that a request would go to, and how many of its tokens each has."""
    said = served.post(f"{served.url}/route", served.key, {"prompt": text})
    overlaps = {w["rank"]: w["overlap_blocks"] * said["block_tokens"] for w in said["workers"]}
    return said["decode"], overlaps


def load_costs(served: Served, text: str) -> dict[int, float]:
    """Return the cost in tokens of blocks that are only in host memory, by worker."""
    said = served.post(f"{served.url}/route", served.key, {"prompt": text})
    return {w["rank"]: w["load_tokens"] for w in said["workers"]}


def hits(served: Served, rank: int, name: str = "vllm:prefix_cache_hits_total") -> float:
    text = served.get(f"{ready(served)[rank]}/metrics", served.token)
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def ask(served: Served, text: str) -> Any:
    return served.client.completions.create(model=MODEL, prompt=text, max_tokens=2)


def leads(served: Served, text: str, rank: int) -> None:
    """A request goes to this worker, which finds the prefix."""
    until("its events", lambda: where(served, text)[0] == rank)
    before = hits(served, rank)
    usage = ask(served, text).usage
    assert usage.prompt_tokens_details.cached_tokens == 3 * BLOCK
    assert hits(served, rank) == before + 3 * BLOCK


@pytest.mark.parametrize("rank", [1, 0])
def test_request_is_routed_to_cached_prefix(served: Served, rank: int) -> None:
    text = prompt(f"apple {rank}")
    assert set(where(served, text)[1].values()) == {0}
    compute(served, rank, text)
    until("its events", lambda: where(served, text)[1][rank] == 3 * BLOCK)
    assert where(served, text)[1][1 - rank] == 0
    leads(served, text, rank)


def test_evicted_blocks_leave_the_index(served: Served) -> None:
    text = prompt("pear")
    compute(served, 0, text)
    leads(served, text, 0)
    for other in range(8):  # more than there is room for, also in host memory
        compute(served, 0, prompt(f"plum {other}"))
    until("the eviction", lambda: where(served, text)[1][0] == 0)
    compute(served, 1, text)
    leads(served, text, 1)


def test_blocks_in_host_memory_are_routed_to_and_loaded(served: Served) -> None:
    text = prompt("grape")
    compute(served, 1, text)
    others = [prompt(f"fig {number}") for number in range(3)]  # fill the device cache
    for other in others:
        compute(served, 1, other)
    until("the events", lambda: where(served, others[-1])[1][1] == 3 * BLOCK)
    assert where(served, text) == (1, {0: 0, 1: 3 * BLOCK})
    assert load_costs(served, text) == {0: 0, 1: pytest.approx(HOST_COST * 3 * BLOCK)}
    before, loaded = hits(served, 1), hits(served, 1, LOADED)
    answer = ask(served, text)
    assert answer.usage.prompt_tokens_details.cached_tokens == 3 * BLOCK
    assert hits(served, 1) == before
    assert hits(served, 1, LOADED) == loaded + 3 * BLOCK
    assert compute(served, 0, text, tokens=8) == compute(served, 1, text, tokens=8)


def test_restarted_engine_has_empty_index(served: Served) -> None:
    text = prompt("cherry")
    compute(served, 1, text)
    leads(served, text, 1)
    url = ready(served)[1]
    os.kill(engine_pid(url), signal.SIGKILL)
    until("its death", lambda: 1 not in ready(served))
    assert where(served, text)[0] == 0
    until("its next life", lambda: 1 in ready(served), READY_S, POLL_S)
    assert where(served, text)[1][1] == 0
    compute(served, 1, text)
    leads(served, text, 1)
