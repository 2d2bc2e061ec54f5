"""Real vLLM on the CPU with tiny random models: adapters, tensor parallelism, embeddings.

One job of three models, so that each of its engines starts only once.
"""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from contextlib import aclosing, closing
from typing import Any
from urllib.error import HTTPError

import pytest

from hpc_dynamo.config import Device, Engine
from hpc_dynamo.engines.vllm.adapter import VllmAdapter
from hpc_dynamo.engines.vllm.pd_protocol import REMOTE_DECODE
from hpc_dynamo.kv.events import BlockHash, BlockStored, KvEvent, decode_events
from hpc_dynamo.wire import KvEventSubscriber
from tests.support import tiny_models
from tests.support.runs import until
from tests.support.vllm import provisioned
from tests.support.vllm_serve import Served, send, serving
from tests.vllm.test_kv import prompt

pytestmark = pytest.mark.vllm

REPLAY_S = 90.0
BLOCK = VllmAdapter().block_tokens(Engine(device=Device.cpu))
LORA = ("pirate", "poet")
LOADED, PULLED = "vllm:external_prefix_cache_hits_total", "vllm:nixl_bytes_transferred_sum"


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
            "models.talk.engine.args.num-gpu-blocks-override=24",
            "models.talk.engine.kv_host_cache_gb=0.05",
        ),
        *("models.wide.topology=aggregated", "models.wide.topology.aggregated.tensor_parallel=2"),
        "models.wide.engine.args.distributed-executor-backend=mp",
        *("models.vectors.topology=aggregated", "models.vectors.engine.args.runner=pooling"),
        "models.vectors.engine.args.convert=embed",
    ]
    with serving(vllm, folder, *words) as found:
        yield found


def said(served: Served, model: str, text: str) -> str:
    asked: dict[str, Any] = {"model": model, "prompt": text, "max_tokens": 8, "temperature": 0}
    return str(served.client.completions.create(**asked).choices[0].text)


def engine(served: Served, model: str, role: str) -> str:
    roles = (model, role)
    return next(str(row["url"]) for row in served.rows() if (row["model"], row["role"]) == roles)


def metric(served: Served, role: str, name: str) -> float:
    text = served.get(f"{engine(served, 'talk', role)}/metrics", served.token)
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def cached(served: Served, model: str, text: str) -> list[int]:
    """Tokens of a prompt that each worker has, were it asked of this model."""
    body = {"model": model, "prompt": text}
    why = served.post(f"{served.url}/route", served.key, body)
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
        alone = served.post(decode, served.token, body | {"model": model, "cache_salt": "new"})
        assert alone["choices"][0]["text"] == answer
    assert len(set(shared.values())) == 3


def test_kv_events_separate_blocks_of_adapters(served: Served) -> None:
    """By the events of a worker that was asked behind the router's back."""
    text, prefill = prompt("pear"), f"{engine(served, 'talk', 'prefill')}/v1/completions"
    served.post(prefill, served.token, {"model": "poet", "prompt": text, "max_tokens": 1})
    until("its events", lambda: cached(served, "poet", text) == [3 * BLOCK, 0])
    assert cached(served, "talk", text) == cached(served, "pirate", text) == [0, 0]


async def published(served: Served, role: str) -> list[KvEvent]:
    """Return all KV events of a worker, by a replay since its start."""
    started = re.search(
        rf"\(talk {role}\) on .* starts: .*--kv-events-config (\{{.*?\}})", served.log.read_text()
    )
    assert started, "the worker was not asked for KV events"
    where, events, numbers = json.loads(started[1]), list[KvEvent](), list[int]()
    with closing(KvEventSubscriber(where["endpoint"], where["replay_endpoint"])) as follower:
        async with aclosing(follower.replay(0, REPLAY_S)) as batches:
            async for number, payload in batches:
                batch = decode_events(payload)
                assert (number, batch.data_parallel_rank) == (len(numbers), 0)
                numbers.append(number)
                events += batch.events
    return events


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_usage_reports_cached_prompt_tokens(served: Served, role: str) -> None:
    """On the decode worker these are blocks that were pulled."""
    text = f"{role}: " + "The quick brown fox jumps over the lazy dog. " * 40
    tokens = served.tokens(role, text, "talk")
    assert len(tokens) > 2 * BLOCK
    served.client.completions.create(model="talk", prompt=text, max_tokens=1)
    prefixes = dict[BlockHash, list[int]]()
    for event in asyncio.run(published(served, role)):
        if isinstance(event, BlockStored) and event.medium == "GPU":
            assert event.block_size == BLOCK
            before = [] if event.parent_block_hash is None else prefixes[event.parent_block_hash]
            for i, name in enumerate(event.block_hashes):
                before = before + event.token_ids[i * BLOCK : (i + 1) * BLOCK]
                prefixes[name] = before
    wanted = [tokens[:end] for end in range(BLOCK, len(tokens), BLOCK)]
    assert [prefix for prefix in prefixes.values() if prefix in wanted] == wanted


def test_lost_blocks_are_recomputed(served: Served) -> None:
    """The default of engine.kv_load_failure_policy: of a prefill worker that is gone."""
    text = prompt("plum")
    asked: dict[str, Any] = {"model": "talk", "prompt": text, "temperature": 0}
    prefill, decode = (
        f"{engine(served, 'talk', role)}/v1/completions" for role in ("prefill", "decode")
    )
    ask = asked | {"max_tokens": 1, "kv_transfer_params": REMOTE_DECODE}
    handed = served.post(prefill, served.token, ask)["kv_transfer_params"]
    gone = handed | {"remote_engine_id": "gone", "remote_port": 1}
    ask = asked | {"max_tokens": 8, "kv_transfer_params": gone}
    answer = served.post(decode, served.token, ask)["choices"][0]["text"]
    assert answer == said(served, "wide", text)


def test_evicted_blocks_are_loaded_and_pulled(served: Served) -> None:
    """The prefill worker loads them from its host cache. The decode worker, which has them there
    too, pulls them all the same: this frees them on the prefill worker."""
    text = prompt("grape")
    answer = said(served, "talk", text)
    for other in range(7):  # more than the device caches have room for
        said(served, "talk", prompt(f"melon {other}"))
    metrics = {"prefill": LOADED, "decode": PULLED}
    before = {role: metric(served, role, name) for role, name in metrics.items()}
    assert said(served, "talk", text) == answer
    after = {role: metric(served, role, name) for role, name in metrics.items()}
    assert after["prefill"] == before["prefill"] + 3 * BLOCK
    assert after["decode"] > before["decode"]


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
        served.post(f"{served.url}/completions", served.key, body)


def test_scores_and_ranks(served: Served) -> None:
    documents = ["The capital of France is Paris.", "Fish swim in the sea."]
    asked: dict[str, Any] = {"model": "vectors", "query": "What is the capital of France?"}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        (alone, said), (status, answer) = both(served, path, asked | {"documents": documents})
        assert (alone, status) == (200, 200), (said, answer)
        scores = [[row["relevance_score"] for row in a["results"]] for a in (said, answer)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    score = {"model": "vectors", "text_1": asked["query"], "text_2": documents}
    for path in ("/score", "/v1/score"):
        (alone, said), (status, answer) = both(served, path, score)
        assert (alone, status) == (200, 200), (said, answer)
    (alone, said), (status, _) = both(served, "/pooling", {"model": "vectors", "input": "x"})
    assert alone == status, said


def both(served: Served, path: str, body: dict[str, Any]) -> list[tuple[int, Any]]:
    """Return status and answer of the embedding worker by itself, and of the endpoint."""
    worker = engine(served, "vectors", "aggregated")
    urls = ((worker, served.token), (served.url.removesuffix("/v1"), served.key))
    return [send(f"{url}{path}", key, json.dumps(body).encode()) for url, key in urls]
