"""A prefill worker loads evicted blocks from its host cache, and the decode worker pulls them."""

from typing import Any

import pytest

from tests.support.vllm_serve import MODEL, Served

pytestmark = pytest.mark.vllm

BLOCK = 128  # tokens, of vLLM's KV cache on the CPU
PROMPT = " ".join(f"Ship number {i} sails over the sea." for i in range(100, 130))
LOADED, PULLED = "vllm:external_prefix_cache_hits_total", "vllm:nixl_bytes_transferred_sum"


def ask(served: Served) -> tuple[str, Any]:
    body: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    answer = served.client.completions.create(**body)
    assert answer.usage is not None
    return answer.choices[0].text, answer.usage.prompt_tokens_details


def test_evicted_blocks_are_loaded_and_pulled(served: Served) -> None:
    first, _ = ask(served)
    whole = len(served.tokens("prefill", PROMPT)) // BLOCK * BLOCK
    assert whole >= 2 * BLOCK
    loaded, pulled = served.metric("prefill", LOADED), served.metric("decode", PULLED)
    # Empties the device cache only.
    served.post(f"{served.workers()['prefill']}/reset_prefix_cache", served.token)
    again, details = ask(served)
    assert again == first
    assert details.cached_tokens == whole
    assert served.metric("prefill", LOADED) == loaded + whole
    assert served.metric("decode", PULLED) > pulled
