"""Real vLLM on the CPU with a hub id as its model: offline, from a Hugging Face cache."""

import pytest

from tests.support.runs import until
from tests.support.vllm_serve import MODEL, Served
from tests.vllm.aggregated.conftest import FIRST_PROMPT

pytestmark = pytest.mark.vllm

PROMPT = "A tree is tall and the birds on it are small. " * 12
OTHER = "A list of rivers, from the longest to the shortest. " * 12


def overlap(served: Served, prompt: str) -> int:
    """Blocks of the prompt that the router expects the only worker to have."""
    said = served.post(f"{served.url}/route", served.key, {"model": MODEL, "prompt": prompt})
    assert "notice" not in said
    assert said["tokens"] == len(served.tokens("aggregated", prompt))
    return int(said["workers"][0]["overlap_blocks"])


def test_hub_model_is_routed_by_kv_cache(served: Served) -> None:
    """Also the first prompt, which was sent before the worker's first event."""
    assert overlap(served, FIRST_PROMPT) > 0
    assert overlap(served, PROMPT) == 0
    served.client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2)
    assert overlap(served, PROMPT) > 0
    (worker,) = served.workers().values()
    served.post(f"{worker}/reset_prefix_cache", served.token)
    served.client.completions.create(model=MODEL, prompt=OTHER, max_tokens=2)
    until("the events", lambda: overlap(served, OTHER) > 0 and overlap(served, PROMPT) == 0)
    assert overlap(served, FIRST_PROMPT) == 0
