"""One aggregated worker of real vLLM, shared by the tests of this folder.

Its model is a hub id, which it loads offline from a Hugging Face cache.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.hub import REPOSITORY, cached
from tests.support.vllm import provisioned
from tests.support.vllm_serve import MODEL, Served, serving

FIRST_PROMPT = "The sea is wide and the ships on it are small. " * 12


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Its first prompt is sent before the worker's first KV event."""
    folder, vllm = tmp_path_factory.mktemp("aggregated"), provisioned()
    cached(folder / "hf" / "hub", vllm.model, link=True)
    environment = {
        "HF_HOME": folder / "hf",
        "HF_HUB_OFFLINE": 1,
        "VLLM_SERVER_DEV_MODE": 1,
        "VLLM_ENABLE_RESPONSES_API_STORE": 1,
    }
    words = [f"engine.env.{name}={value}" for name, value in environment.items()]
    words += ["topology=aggregated", "engine.args.max-model-len=512"]
    with serving(replace(vllm, model=Path(REPOSITORY)), folder, *words) as found:
        found.client.completions.create(model=MODEL, prompt=FIRST_PROMPT, max_tokens=2)
        yield found
