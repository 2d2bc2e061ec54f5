"""Real vLLM behind the endpoint: what vLLM accepts is accepted, and its own paths are there."""

import json
from typing import Any

import openai
import pytest

from hpc_dynamo.engines.http_paths import is_inference
from tests.support.vllm_serve import MODEL, Served, send

pytestmark = pytest.mark.vllm

PROMPT = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
ADMINISTRATION = (
    *("/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache", "/invocations", "/pause"),
    *("/start_profile", "/v1/load_lora_adapter", "/scale_elastic_ep", "/update_weights"),
)
TEXT = json.dumps(PROMPT)[:-1]


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
