"""LoRA adapters of one model, next to a model that only returns embeddings."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.serving.served import Served, serving
from tests.support.runs import HANG_S, until

pytestmark = pytest.mark.slow

WORDS = (
    *("models.talk.topology=disaggregated", "models.talk.router.conditional_disaggregation=false"),
    *("models.talk.lora.pirate=/adapters/pirate", "models.talk.lora.poet-v1.5=/adapters/poet"),
    *("models.sing.topology=disaggregated", "models.sing.engine.args.pd-protocol=sglang"),
    *("models.sing.path=''", "models.sing.lora.tenor=/adapters/tenor"),
    *("models.vectors.topology=aggregated", "models.vectors.engine.args.runner=pooling"),
    "models.vectors.path=''",
)
NAMES = ("talk", "pirate", "poet-v1.5")
STORY = "One day a fox met a hen and told it of a far land. " * 8


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Served]:
    words = (*WORDS, f"models.talk.path={model_folder}")
    with serving(tmp_path_factory.mktemp("adapters"), *words) as served:
        yield served


def said(served: Served, model: str, prompt: str = STORY) -> Any:
    return served.client.completions.create(model=model, prompt=prompt, max_tokens=6)


def blocks(served: Served, model: str, prompt: str) -> dict[str, int]:
    """Return the cached blocks of a prompt per role for this model."""
    why = served.post("/v1/route", {"model": model, "prompt": prompt}).json
    return {worker["role"]: worker["overlap_blocks"] for worker in why["workers"]}


def test_adapters_are_listed_with_parent(served: Served) -> None:
    rows = served.ask("GET", "/v1/models").json["data"]
    found = {row["id"]: row.get("parent") for row in rows}
    talk, sing = {"talk": None, "pirate": "talk", "poet-v1.5": "talk"}, {"sing": None}
    assert found == {**talk, **sing, "tenor": "sing", "vectors": None}
    assert served.ask("GET", "/v1/models/pirate").json["parent"] == "talk"


def test_adapter_output_is_equal_with_and_without_disaggregation(served: Served) -> None:
    """Blocks that were computed for another adapter would give other text."""
    row = next(w for w in served.ask("GET", "/v1/workers").json["data"] if w["role"] == "decode")
    token, texts = served.attempt.run.secrets().token, set[str]()
    for model in NAMES:
        answer = said(served, model)
        body = json.dumps({"model": model, "prompt": f"{STORY}", "max_tokens": 6}).encode()
        headers = {"Authorization": f"Bearer {token}"}
        asked = urllib.request.Request(f"{row['url']}/v1/completions", body, headers)
        with urllib.request.urlopen(asked, timeout=HANG_S) as alone:
            assert json.load(alone)["choices"][0]["text"] == answer.choices[0].text
        assert answer.model == model
        texts.add(answer.choices[0].text)
    assert len(texts) == len(NAMES)


def test_sglang_adapter_request_names_model_and_adapter(served: Served) -> None:
    """SGLang would read only the adapter's name as the model."""
    alone, own = said(served, "sing"), said(served, "tenor")
    assert (alone.model, own.model) == ("sing", "sing:tenor")
    assert alone.choices[0].text != own.choices[0].text


def test_adapters_do_not_share_cached_blocks(served: Served) -> None:
    new = f"{served.attempt.run.path} {STORY}"
    said(served, "pirate", new)
    whole = len(new) // 16
    has_it = {"prefill": whole, "decode": whole}
    until("its events", lambda: blocks(served, "pirate", new) == has_it, 10)
    for other in ("talk", "poet-v1.5"):
        assert blocks(served, other, new) == {"prefill": 0, "decode": 0}
    assert said(served, "pirate", new).usage.prompt_tokens_details.cached_tokens >= 16
    assert not said(served, "talk", new).usage.prompt_tokens_details.cached_tokens


def test_unknown_adapter_name_is_rejected_with_known_names(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match=r"talk.*pirate.*poet-v1\.5") as missing:
        said(served, "parrot")
    assert missing.value.code == "model_not_found"


def test_embedding_model_becomes_ready(served: Served) -> None:
    made = served.client.embeddings.create(model="vectors", input="a fox")
    assert len(made.data[0].embedding) == 256
    with pytest.raises(openai.NotFoundError):
        said(served, "vectors")
