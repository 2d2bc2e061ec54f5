"""Real vLLM behind the endpoint: what vLLM accepts is accepted, and its own paths are there."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from hpc_dynamo.engines.http_paths import is_inference
from tests.support.vllm import provisioned
from tests.vllm.test_serve import MODEL, Served, serving

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PROMPT = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
ADMINISTRATION = (
    *("/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache", "/invocations", "/pause"),
    *("/start_profile", "/v1/load_lora_adapter", "/scale_elastic_ep", "/update_weights"),
)
TEXT = json.dumps(PROMPT)[:-1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = "engine.env.VLLM_ENABLE_RESPONSES_API_STORE=1"
    sizes = ("topology=aggregated", "engine.args.max-model-len=512")
    with serving(provisioned(), tmp_path_factory.mktemp("http"), store, *sizes) as found:
        yield found


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ("engine.args.runner=pooling", "engine.args.convert=embed")
    sizes = ("topology=aggregated", "engine.args.max-model-len=512")
    with serving(provisioned(), tmp_path_factory.mktemp("pool"), *words, *sizes) as found:
        yield found


def send(url: str, key: str, body: bytes | None, method: str = "POST") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = Request(url, body, headers, method=method)
    try:
        with urlopen(request, timeout=120) as got:
            return got.status, json.loads(got.read())
    except HTTPError as e:
        return e.code, json.loads(e.read())


def both(served: Served, path: str, body: bytes) -> list[tuple[int, Any]]:
    """Return status and answer of the worker by itself, and of the endpoint."""
    worker = next(iter(served.workers().values()))
    urls = ((worker, served.token), (served.url.removesuffix("/v1"), served.key))
    return [send(f"{url}{path}", key, body) for url, key in urls]


BODIES = {
    "plain": (TEXT + "}").encode(),
    "byte order mark": b"\xef\xbb\xbf" + (TEXT + "}").encode(),
    "UTF-16": (TEXT + "}").encode("utf-16"),
    "UTF-16 without a mark": (TEXT + "}").encode("utf-16-be"),
    "UTF-32": (TEXT + "}").encode("utf-32"),
    "NaN": (TEXT + ', "length_penalty": NaN}').encode(),
    "NaN as temperature": (TEXT + ', "temperature": NaN}').encode(),
    "Infinity": (TEXT + ', "repetition_penalty": Infinity}').encode(),
    "1e400": (TEXT + ', "length_penalty": 1e400}').encode(),
    "a huge integer": (TEXT + ', "user": null, "seed": 123456789012345678901234567890}').encode(),
    "half a surrogate pair": (TEXT + r', "suffix": null, "prompt": "\ud83d"}').encode(),
    "half a surrogate pair in a name": (TEXT + r', "user": "\ud83d"}').encode(),
    "a key twice": (TEXT + ', "max_tokens": 2}').encode(),
    "nulls": (TEXT + ', "n": null, "stream": null, "stop": null, "logprobs": null}').encode(),
    "null as a limit": (TEXT + ', "max_tokens": null, "max_completion_tokens": 3}').encode(),
    "nested 200 deep": (TEXT + ', "x": ' + "[" * 200 + "]" * 200 + "}").encode(),
    "nested 3000 deep": (TEXT + ', "x": ' + "[" * 3000 + "]" * 3000 + "}").encode(),
    "empty": b"",
    "a number": b"3",
    "Latin-1": '{"model": "smol", "prompt": "é"}'.encode("latin-1"),
    "too long": json.dumps(PROMPT | {"prompt": "word " * 2000}).encode(),
    "no prompt": b'{"model": "smol", "max_tokens": 1}',
    "a wrong type": (TEXT + ', "max_tokens": "x"}').encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_accepted_by_vllm_are_accepted(served: Served, name: str) -> None:
    (alone, said), (status, answer) = both(served, "/v1/completions", BODIES[name])
    if alone == 200:
        assert status == 200, answer
        assert answer["choices"][0]["text"] == said["choices"][0]["text"]
        return
    # vLLM answers 500 to some of what its parser cannot read; that is not to be repeated.
    assert status == 400, (alone, said, answer)
    assert answer["error"]["message"]
    if alone == 400 and name not in ("empty", "a number", "Latin-1", "nested 3000 deep"):
        assert answer == said, "the engine's own error"


def test_inference_paths_of_openapi_are_served(served: Served) -> None:
    base = served.url.removesuffix("/v1")
    assert send(f"{base}/version", served.key, None, "GET")[1]["version"].startswith("0.")
    worker = next(iter(served.workers().values()))
    paths = send(f"{worker}/openapi.json", served.token, None, "GET")[1]["paths"]
    posts = [path for path, row in paths.items() if "post" in row and "{" not in path]
    assert {"/v1/completions", "/tokenize"} <= set(filter(is_inference, posts))
    for path in posts:
        status, answer = send(f"{base}{path}", served.key, b"{}")
        unserved = status == 404 and "is not served here" in str(answer)
        assert unserved == (not is_inference(path)), (path, status, answer)


def test_administration_paths_of_vllm_are_not_served(served: Served) -> None:
    base = served.url.removesuffix("/v1")
    for path in ADMINISTRATION:
        assert send(f"{base}{path}", served.key, b"{}")[0] == 404


def test_transfer_params_of_client_are_removed(served: Served) -> None:
    base = served.url.removesuffix("/v1")
    body = PROMPT | {"vllm_xargs": {"kv_transfer_params": "x"}}
    status, answer = send(f"{base}/v1/completions", served.key, json.dumps(body).encode())
    assert status == 400
    assert "only the endpoint may set" in answer["error"]["message"]


def test_stored_response_is_routed_to_its_worker(served: Served) -> None:
    made = served.client.responses.create(model=MODEL, input="Hi", max_output_tokens=4)
    assert served.client.responses.retrieve(made.id).output_text == made.output_text
    with pytest.raises(openai.NotFoundError, match="resp_nothing"):
        served.client.responses.retrieve("resp_nothing")


def test_scores_and_ranks(pooling: Served) -> None:
    documents = ["The capital of France is Paris.", "Fish swim in the sea."]
    asked: dict[str, Any] = {"model": MODEL, "query": "What is the capital of France?"}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        body = json.dumps(asked | {"documents": documents}).encode()
        (alone, said), (status, answer) = both(pooling, path, body)
        assert (alone, status) == (200, 200), (said, answer)
        scores = [[row["relevance_score"] for row in a["results"]] for a in (said, answer)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    score = {"model": MODEL, "text_1": asked["query"], "text_2": documents}
    for path in ("/score", "/v1/score"):
        (alone, said), (status, answer) = both(pooling, path, json.dumps(score).encode())
        assert (alone, status) == (200, 200), (said, answer)
    (alone, said), (status, _) = both(
        pooling, "/pooling", json.dumps({"model": MODEL, "input": "x"}).encode()
    )
    assert alone == status, said
