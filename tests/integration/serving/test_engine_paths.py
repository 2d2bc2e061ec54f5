"""Engine paths are forwarded for inference, never for administration."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from hpc_dynamo.dispatch.reserved_fields import REFUSED_FIELDS, RESERVED_FIELDS
from tests.integration.serving.routed import routing, rows
from tests.integration.serving.served import Served
from tests.support.paths_engine import ADMINISTRATION, MODEL, started
from tests.support.runs import until

ALIAS = "org/paths"
NAMES = ("one", "two")


@pytest.fixture(scope="module")
def urls() -> Iterator[list[str]]:
    with ExitStack() as stack:
        yield [stack.enter_context(started(name)) for name in NAMES]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, urls: list[str]) -> Iterator[Served]:
    words = ("--workers", ",".join(urls), f"model.name={MODEL}", f"model.path={ALIAS}")
    with routing(tmp_path_factory.mktemp("paths"), *words, "router=round_robin") as run:
        until("both", lambda: [row["state"] for row in rows(run)] == ["ready", "ready"])
        yield run


def test_unknown_paths_of_the_engine_are_forwarded(served: Served) -> None:
    asked = {"model": MODEL, "query": "a", "documents": ["b"], "kv_transfer_params": {"x": 1}}
    reply = served.post("/v1/rerank?top=1", asked)
    assert (reply.status, reply.json["path"]) == (200, "/v1/rerank?top=1")
    assert reply.json["body"] == {"model": MODEL, "query": "a", "documents": ["b"]}
    for path in ("/rerank", "/v2/rerank", "/v1/score"):
        assert served.post(path, asked).json["path"] == path
    assert served.post("/classify/", {"input": "x"}).json["path"] == "/classify"
    assert served.ask("GET", "/version").json["engine"] in NAMES
    head = served.ask("HEAD", "/version")
    assert (head.status, head.body) == (200, b"")


def test_the_full_hub_id_is_an_alias_of_the_served_name(served: Served) -> None:
    assert served.post("/v1/rerank", {"model": ALIAS}).json["body"] == {"model": MODEL}
    done = served.client.completions.create(model=ALIAS, prompt="x", max_tokens=1)
    assert done.choices[0].text == "word"
    assert [(m.id, m.to_dict()["root"]) for m in served.client.models.list()] == [(MODEL, ALIAS)]
    assert served.client.models.retrieve(ALIAS).id == MODEL
    assert served.ask("GET", "/v1/models/org%2Fpaths").json["id"] == MODEL
    assert served.post("/v1/rerank", {"model": "other/paths"}).status == 404
    for unknown in (
        served.post("/v1/completions", {"model": "other/paths", "prompt": "x"}),
        served.ask("GET", "/v1/models/other%2Fpaths"),
    ):
        assert unknown.status == 404
        said = unknown.json["error"]["message"]
        assert said.endswith(f"'other/paths' is not served; known: {MODEL}, {ALIAS}")


@pytest.mark.parametrize("path", ADMINISTRATION)
def test_administration_is_not_forwarded(served: Served, urls: list[str], path: str) -> None:
    assert served.post(path, {}).status == 404
    assert served.post(f"/v1/..{path}", {}).status == 404
    for url in urls:
        assert json.load(urllib.request.urlopen(f"{url}/called")) == []


def test_forwarded_paths_need_the_key(served: Served) -> None:
    for method, path in (("POST", "/v1/rerank"), ("GET", "/version"), ("GET", "/v1/responses/x")):
        assert served.ask(method, path, b"{}", headers={}).status == 401


def test_fields_that_address_processes_are_removed(served: Served) -> None:
    reserved = dict.fromkeys(RESERVED_FIELDS, "x")
    allowed = {"model": MODEL, "cache_salt": "s", "priority": 1}
    assert served.post("/v1/rerank", allowed | reserved).json["body"] == allowed


@pytest.mark.parametrize("name", REFUSED_FIELDS)
def test_fields_that_run_code_are_refused(served: Served, name: str) -> None:
    for path, body in (
        ("/v1/rerank", {name: "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], name: "x"}),
        ("/v1/completions", {"prompt": "x", "vllm_xargs": {name: "x"}}),
        ("/classify", {"sampling_params": [{name: {}}]}),
    ):
        reply = served.post(path, body)
        assert reply.status == 400
        assert name in reply.json["error"]["message"]
    sound, extra = ("a.wav", b""), {name: "x"}
    with pytest.raises(openai.BadRequestError, match=name):
        served.client.audio.transcriptions.create(model=MODEL, file=sound, extra_body=extra)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"sampling_params": {"extra_args": {"kv_transfer_params": {"x": 1}}}}),
        ("/v1/rerank", {"list": [{"a": [{"bootstrap_room": 1}]}]}),
        ("/classify", {"vllm_xargs": {"ec_transfer_params": "x"}}),
        ("/v1/completions", {"prompt": "x", "vllm_xargs": {"kv_transfer_params": "x"}}),
        ("/v1/responses", {"input": "x", "vllm_xargs": {"disaggregated_params": [1]}}),
    ],
)
def test_nested_reserved_fields_are_rejected(
    served: Served, path: str, body: dict[str, Any]
) -> None:
    """A client could otherwise crash an engine with a wrong address of KV blocks."""
    for text in (json.dumps(body), json.dumps(body).replace("params", r"par\u0061ms")):
        reply = served.ask("POST", path, text.encode())
        assert reply.status == 400, text
        assert "only the endpoint may set" in reply.json["error"]["message"]


def test_unknown_path_suggests_similar_ones(served: Served) -> None:
    reply = served.post("/v1/rerankk", {})
    assert reply.status == 404
    assert "did you mean /v1/rerank" in reply.json["error"]["message"]
    assert "/classify" in reply.json["error"]["message"]


def test_wrong_method_of_engine_path_names_allowed(served: Served) -> None:
    reply = served.ask("DELETE", "/v1/rerank")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    reply = served.ask("PUT", "/v1/responses/x")
    assert (reply.status, reply.headers["allow"]) == (405, "GET")
    assert served.ask("PUT", "/v1/models").headers["allow"] == "GET, HEAD"


def test_flat_engine_error_becomes_openai_error(served: Served) -> None:
    assert served.post("/pooling", {}).json["error"] == {
        "message": "no pooling here",
        "type": "BadRequestError",
        "param": "task",
        "code": 400,
    }


def test_audio_form_is_forwarded(served: Served) -> None:
    sound = ("a.wav", bytes(range(256)) * 400)
    said = served.client.audio.transcriptions.create(model=MODEL, file=sound)
    assert said.text == f"a.wav has 102400 bytes for {MODEL}"
    with pytest.raises(openai.NotFoundError, match="nothing"):
        served.client.audio.transcriptions.create(model="nothing", file=sound)
    extra = {"kv_transfer_params": "x"}
    with pytest.raises(openai.BadRequestError, match="only the endpoint may set"):
        served.client.audio.transcriptions.create(model=MODEL, file=sound, extra_body=extra)


def test_error_without_reason_names_the_worker_and_its_log(served: Served) -> None:
    named = "worker [01] answered 500: Internal Server Error; the log of the engine may have"
    client = served.client.with_options(max_retries=0)
    with pytest.raises(openai.InternalServerError, match=named):
        client.audio.transcriptions.create(model=MODEL, file=("broken.wav", b"x"))


def test_id_of_a_response_cannot_hold_a_request(served: Served) -> None:
    """Such an id reached the engine as a request of its own, with the engine's key."""
    name = "x HTTP/1.1\r\nhost: a\r\n\r\nPOST /reset_prefix_cache HTTP/1.1\r\nx: y"
    asked: Any = {"model": MODEL, "input": "x", "previous_response_id": name}
    for _ in range(4):
        assert served.post("/v1/responses", asked).status == 404
        assert served.ask("GET", "/version").json["engine"] in NAMES


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"]
)
def test_json_with_other_content_type_is_parsed(served: Served, kind: str) -> None:
    headers = {"Authorization": f"Bearer {served.key}", "Content-Type": kind}
    asked = {"model": ALIAS, "query": "a", "kv_transfer_params": {"x": 1}}
    assert served.post("/v1/rerank", asked, headers).json["body"] == {"model": MODEL, "query": "a"}
    hidden = {"sampling_params": {"kv_transfer_params": {"x": 1}}}
    assert served.post("/v1/rerank", hidden, headers).status == 400


def test_binary_response_is_unchanged(served: Served) -> None:
    spoken = served.client.audio.speech.create(model=MODEL, voice="v", input="x")
    assert spoken.read() == bytes(range(256))
    assert spoken.response.headers["content-type"] == "audio/mpeg"


def test_stored_response_is_found_on_its_worker(served: Served) -> None:
    made = [served.post("/v1/responses", {"model": MODEL, "input": "x"}).json["id"] for _ in "1234"]
    assert {name.split("_")[1] for name in made} == {"one", "two"}
    for name in made * 2:
        assert served.client.responses.retrieve(name).id == name
        assert served.post(f"/v1/responses/{name}/cancel", {}).json["of"] == "POST"
        for _ in range(2):  # round robin would send one to the other worker
            asked: Any = {"model": MODEL, "input": "y", "previous_response_id": name}
            assert (
                served.post("/v1/responses", asked).json["id"].split("_")[1] == name.split("_")[1]
            )
    with pytest.raises(openai.NotFoundError, match="Response with id 'resp_x' not found"):
        served.client.responses.retrieve("resp_x")
