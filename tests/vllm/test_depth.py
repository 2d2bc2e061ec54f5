"""Real vLLM on the CPU with tiny models of noise: adapters, two shares of every layer, vectors.

One job of three models, so that all of its engines start but once.
"""

import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from hpc_dynamo.engines.vllm.pd_protocol import REMOTE_DECODE
from tests.support import tiny_models
from tests.support.vllm import provisioned
from tests.vllm.test_kv import BLOCK, TOLD_S, prompt, until
from tests.vllm.test_serve import Served, serving

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LORA = ("pirate", "poet")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    vllm, folder = provisioned(), tmp_path_factory.mktemp("depth")
    base = tiny_models.llama(folder / "tiny", vllm.model)
    ranks = {"pirate": 4, "poet": 24}
    paths = {n: tiny_models.lora(folder / n, base, rank, seed=rank) for n, rank in ranks.items()}
    words = [
        *(f"models.{name}.path={base}" for name in ("talk", "wide", "vectors")),
        *(f"models.talk.lora.{name}={path}" for name, path in paths.items()),
        *(
            "models.talk.topology=disaggregated",
            "models.talk.router.conditional_disaggregation=false",
        ),
        *("models.wide.topology=aggregated", "models.wide.topology.aggregated.tensor_parallel=2"),
        *("models.vectors.topology=aggregated", "models.vectors.engine.args.runner=pooling"),
        "models.vectors.engine.args.convert=embed",
    ]
    with serving(vllm, folder, *words) as found:
        yield found


def said(served: Served, model: str, text: str) -> str:
    asked: dict[str, Any] = {"model": model, "prompt": text, "max_tokens": 8, "temperature": 0}
    return str(served.client.completions.create(**asked).choices[0].text)


def engine(served: Served, model: str, role: str) -> str:
    rows = json.loads(served.get(f"{served.url}/workers", served.key))["data"]
    return next(str(row["url"]) for row in rows if (row["model"], row["role"]) == (model, role))


def post(served: Served, url: str, body: dict[str, Any], key: str) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=60) as got:
        return json.loads(got.read())


def cached(served: Served, model: str, text: str) -> list[int]:
    """Tokens of a prompt that each worker has, were it asked of this model."""
    body = {"model": model, "prompt": text}
    why = post(served, f"{served.url}/route", body, served.key)
    return [w["overlap_blocks"] * why["block_tokens"] for w in why["workers"]]


def test_adapters_answer_through_both_workers(served: Served) -> None:
    rows = json.loads(served.get(f"{served.url}/models", served.key))["data"]
    parents = {row["id"]: row.get("parent") for row in rows}
    assert parents == {
        "talk": None,
        "pirate": "talk",
        "poet": "talk",
        "wide": None,
        "vectors": None,
    }
    text, decode = prompt("apple"), f"{engine(served, 'talk', 'decode')}/v1/completions"
    shared = {model: said(served, model, text) for model in ("talk", *LORA)}
    body = {"prompt": text, "max_tokens": 8, "temperature": 0}
    for model, answer in shared.items():
        alone = post(served, decode, body | {"model": model, "cache_salt": "new"}, served.token)
        assert alone["choices"][0]["text"] == answer
    assert len(set(shared.values())) == 3


def test_kv_events_separate_blocks_of_adapters(served: Served) -> None:
    """By the events of a worker that was asked behind the router's back."""
    text, prefill = prompt("pear"), f"{engine(served, 'talk', 'prefill')}/v1/completions"
    post(served, prefill, {"model": "poet", "prompt": text, "max_tokens": 1}, served.token)
    until("its events", lambda: cached(served, "poet", text) == [3 * BLOCK, 0], TOLD_S)
    assert cached(served, "talk", text) == cached(served, "pirate", text) == [0, 0]


def test_lost_blocks_are_recomputed(served: Served) -> None:
    """The default of engine.kv_load_failure_policy: of a prefill worker that is gone."""
    text = prompt("plum")
    asked: dict[str, Any] = {"model": "talk", "prompt": text, "temperature": 0}
    prefill, decode = (
        f"{engine(served, 'talk', role)}/v1/completions" for role in ("prefill", "decode")
    )
    ask = asked | {"max_tokens": 1, "kv_transfer_params": REMOTE_DECODE}
    handed = post(served, prefill, ask, served.token)["kv_transfer_params"]
    gone = handed | {"remote_engine_id": "gone", "remote_port": 1}
    ask = asked | {"max_tokens": 8, "kv_transfer_params": gone}
    answer = post(served, decode, ask, served.token)["choices"][0]["text"]
    assert answer == said(served, "wide", text)


def test_tensor_parallel_worker_equals_single_process(served: Served) -> None:
    for name in ("cherry", "fig"):
        assert said(served, "wide", prompt(name)) == said(served, "talk", prompt(name))


def test_embedding_model_serves_embeddings(served: Served) -> None:
    ask: dict[str, Any] = {"model": "vectors", "input": ["a fox", "a hen", "a fox"]}
    fox, hen, again = (row.embedding for row in served.client.embeddings.create(**ask).data)
    assert len(fox) == tiny_models.HIDDEN
    assert math.isclose(math.hypot(*fox), 1, rel_tol=1e-3)
    assert math.dist(fox, again) < 1e-3 < math.dist(fox, hen)
    body = {"model": "vectors", "prompt": "a fox", "max_tokens": 1}
    with pytest.raises(HTTPError, match="404"):
        post(served, f"{served.url}/completions", body, served.key)
