"""Real vLLM on the CPU with a hub id as its model: offline, from a Hugging Face cache."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.support.hub import REPOSITORY, cached
from tests.support.runs import until
from tests.support.vllm import provisioned
from tests.vllm.test_serve import MODEL, Served, serving

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PROMPT = "The sea is wide and the ships on it are small. " * 12
OTHER = "A list of rivers, from the longest to the shortest. " * 12


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder, vllm = tmp_path_factory.mktemp("hub"), provisioned()
    cached(folder / "hf" / "hub", vllm.model, link=True)
    environment = {"HF_HOME": folder / "hf", "HF_HUB_OFFLINE": 1, "VLLM_SERVER_DEV_MODE": 1}
    words = [f"engine.env.{name}={value}" for name, value in environment.items()]
    hub = replace(vllm, model=Path(REPOSITORY))
    with serving(hub, folder, "topology=aggregated", *words) as found:
        yield found


def post(url: str, key: str, body: object = None) -> Any:
    content = json.dumps(body).encode() if body else b""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urlopen(Request(url, content, headers, method="POST"), timeout=60) as got:
        return json.loads(got.read() or b"null")


def overlap(served: Served, prompt: str) -> int:
    """Blocks of the prompt that the router expects the only worker to have."""
    said = post(f"{served.url}/route", served.key, {"model": MODEL, "prompt": prompt})
    assert "notice" not in said
    assert said["tokens"] == len(served.tokens("aggregated", prompt))
    return int(said["workers"][0]["overlap_blocks"])


def test_hub_model_is_routed_by_kv_cache(served: Served) -> None:
    """Also the first prompt, which was sent before the worker's first event."""
    assert overlap(served, PROMPT) == 0
    served.client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2)
    assert overlap(served, PROMPT) > 0
    (worker,) = served.workers().values()
    post(f"{worker}/reset_prefix_cache", served.token)
    served.client.completions.create(model=MODEL, prompt=OTHER, max_tokens=2)
    until("the events", lambda: overlap(served, OTHER) > 0 and overlap(served, PROMPT) == 0, 4)
