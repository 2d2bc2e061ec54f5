"""Requests to a data-parallel vLLM worker return to the rank that has their prefix."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.support import tiny_models
from tests.support.vllm import provisioned
from tests.support.vllm_serve import MODEL, Served, serving
from tests.vllm.test_kv import BLOCK, prompt

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

RANKS = 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One aggregated worker with two ranks of a tiny model."""
    vllm, folder = provisioned(), tmp_path_factory.mktemp("ranks")
    tiny = replace(vllm, model=tiny_models.llama(folder / "tiny", vllm.model))
    words = [
        "topology=aggregated",
        f"topology.aggregated.data_parallel={RANKS}",
        "engine.args.max-model-len=1024",
        "engine.args.num-gpu-blocks-override=16",
        "engine.max_num_seqs=4",
    ]
    with serving(tiny, folder, *words) as found:
        yield found


def hits(served: Served) -> list[float]:
    """Return the cached tokens by rank, from the engine's metrics."""
    (url,) = served.workers().values()
    text = served.get(f"{url}/metrics", served.token)
    pattern = r'^vllm:prefix_cache_hits_total\{engine="(\d+)".*\} (\S+)$'
    found = dict(re.findall(pattern, text, re.MULTILINE))
    return [float(found[str(rank)]) for rank in range(RANKS)]


def cached(served: Served, name: str) -> int:
    answer = served.client.completions.create(model=MODEL, prompt=prompt(name), max_tokens=2)
    details = answer.usage.prompt_tokens_details if answer.usage else None
    return details.cached_tokens or 0 if details else 0


def explained(served: Served, name: str) -> dict[Any, int]:
    """Return the cached blocks by data-parallel rank, as the router sees them."""
    said = served.post(f"{served.url}/route", served.key, {"prompt": prompt(name)})
    return {w["dp_rank"]: w["overlap_blocks"] * said["block_tokens"] for w in said["workers"]}


def test_each_prefix_stays_on_its_rank(served: Served) -> None:
    assert [cached(served, name) for name in ("red", "blue")] == [0, 0]
    places = [explained(served, name) for name in ("red", "blue")]
    # A prompt that was just sent is expected with its last, incomplete block too.
    assert all(min(each.values()) == 0 < 3 * BLOCK <= max(each.values()) for each in places)
    assert places[0].keys() == places[1].keys() == set(range(RANKS))
    assert max(places[0], key=places[0].__getitem__) != max(places[1], key=places[1].__getitem__)
    for names in (("blue", "red"), ("red", "red", "blue"), ("blue", "blue", "red", "blue")):
        assert [cached(served, name) for name in names] == [3 * BLOCK] * len(names)
    assert sorted(hits(served)) == [4 * 3 * BLOCK, 5 * 3 * BLOCK]
