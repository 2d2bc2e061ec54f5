"""HTTP details of the endpoint: access, unknown paths, sizes, public paths, headers."""

import json
from typing import Any

import pytest

from hpc_dynamo.config import Role
from hpc_dynamo.frontend import errors
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.head.workloads.endpoint_state import failed_requests
from tests.integration.serving.served import MODEL, Served

PAGES = ("/v1/models", "/v1/workers", "/metrics")
POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize")
ASK: dict[str, Any] = {"prompt": "hello", "max_tokens": 1}


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer "}, {"Authorization": "Basic x"}]
)
@pytest.mark.parametrize("path", [*PAGES, *POSTS, "/nothing"])
def test_request_without_key_is_rejected(
    aggregated: Served, path: str, headers: dict[str, str]
) -> None:
    reply = aggregated.ask("GET" if path in PAGES else "POST", path, b"{}", headers)
    assert (reply.status, reply.json["error"]["code"]) == (401, "missing_api_key")
    assert reply.json["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("key", ["x", "Bearer", "ü", "x" * 10_000])
def test_request_with_wrong_key_is_rejected(aggregated: Served, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    assert aggregated.post("/v1/completions", ASK, headers).json["error"]["code"] == (
        "invalid_api_key"
    )


def test_engine_token_is_not_an_api_key(aggregated: Served) -> None:
    headers = {"Authorization": f"Bearer {aggregated.attempt.run.secrets().token}"}
    assert aggregated.ask("GET", "/v1/models", headers=headers).status == 401


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER   "])
def test_bearer_scheme_is_case_insensitive(aggregated: Served, scheme: str) -> None:
    headers = {"Authorization": f"{scheme}{aggregated.key}"}
    assert aggregated.post("/v1/completions", ASK, headers).status == 200


def test_messages_errors_have_anthropic_format(aggregated: Served) -> None:
    ask = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
    missing = aggregated.post("/v1/messages", ask, {})
    assert (missing.status, missing.json["type"]) == (401, "error")
    assert missing.json["error"]["type"] == "authentication_error"
    other = aggregated.post("/v1/messages", ask | {"model": "o"}, {"x-api-key": aggregated.key})
    assert (other.status, other.json["type"]) == (404, "error")
    assert other.json["error"]["type"] == "not_found_error"
    # The simulator has no such endpoint, and only OpenAI's error format.
    count = "/v1/messages/count_tokens"
    passed = aggregated.post(count, ask, {"x-api-key": aggregated.key})
    assert (passed.status, passed.json["type"]) == (404, "error")
    assert passed.json["error"]["type"] == "not_found_error"
    assert f"engine of this job has no endpoint {count}" in passed.json["error"]["message"]


# Responses of engines to an unknown path and to an error: vLLM, FastAPI, others.
VLLM = b'{"error":{"message":"Not Found","type":"Not Found","param":null,"code":404}}'
NO_MODEL = (
    b'{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","code":404}}'
)
FLAT = (
    b'{"object":"error","message":"the input is too long","type":"BadRequestError",'
    b'"param":"prompt","code":400}'
)
THEIR_OWN = b'{"type":"error","error":{"type":"NotFoundError","message":"Not there"}}'


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("body", [VLLM, b'{"detail":"Not Found"}'])
def test_missing_path_in_any_engine_format_is_404(path: str, body: bytes) -> None:
    shown = json.loads(errors.engine_error_body(404, body, "worker 0 answered 404", path))
    assert shown["error"]["message"] == f"the engine of this job has no endpoint {path}"
    assert shown["error"]["type"] == "not_found_error"
    assert (shown.get("type") == "error") == path.startswith("/v1/messages")


@pytest.mark.parametrize(
    ("status", "body", "path", "message"),
    [
        (404, NO_MODEL, "/v1/messages", "The model `x` does not exist."),
        (400, b'{"detail":"too long"}', "/v1/completions", "too long"),
        (400, b'{"detail":[{"loc":["body"]}]}', "/v1/completions", "worker 0 answered"),
        (400, b"<html>", "/v1/messages", "worker 0 answered"),
        (502, b"<html><h1>Bad Gateway</h1></html>", "/v1/completions", "Bad Gateway"),
        (500, b"Internal Server Error", "/v1/chat/completions", "worker 0 answered"),
        (422, b'{"detail":[{"loc":["body","n"],"msg":"no"}]}', "/v1/messages", "n: no"),
        (400, FLAT, "/v1/messages", "the input is too long"),
    ],
)
def test_engine_message_gets_format_of_path(
    status: int, body: bytes, path: str, message: str
) -> None:
    shown = json.loads(errors.engine_error_body(status, body, "worker 0 answered", path))
    assert shown["error"]["message"] == message
    assert (shown.get("type") == "error") == (path == "/v1/messages")


def test_flat_engine_errors_become_openai_errors() -> None:
    shown = json.loads(errors.engine_error_body(400, FLAT, "worker 0 answered", "/v1/completions"))
    assert shown == {
        "error": {
            "message": "the input is too long",
            "type": "BadRequestError",
            "param": "prompt",
            "code": 400,
        }
    }


@pytest.mark.parametrize(
    ("body", "path"), [(NO_MODEL, "/v1/completions"), (THEIR_OWN, "/v1/messages")]
)
def test_engine_error_body_is_unchanged(body: bytes, path: str) -> None:
    assert errors.engine_error_body(404, body, "", path) == body


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
def test_broken_stream_ends_with_engine_message(path: str) -> None:
    error = errors.engine_error(400, FLAT, "worker 0 answered 400", path)
    lines = errors.error_event(error, path).decode().splitlines()
    shown = json.loads(next(line for line in lines if line.startswith("data: {"))[6:])
    assert shown["error"]["message"] == "the input is too long"
    assert (shown.get("type") == "error") == (path == "/v1/messages")
    assert ("data: [DONE]" in lines) == (path != "/v1/messages")


def test_broken_responses_stream_ends_with_a_numbered_event() -> None:
    error = errors.engine_error(503, b"", "worker 0 left", "/v1/responses")
    before = b'data: {"sequence_number":7,"delta":"x"}\n\ndata: {"sequence_number": 8}\n\n'
    lines = errors.error_event(error, "/v1/responses", before).decode().split("\n")
    assert lines[2] == "event: error"
    shown = json.loads(lines[3].removeprefix("data: "))
    assert (shown.pop("type"), shown.pop("sequence_number")) == ("error", 9)
    assert shown == {"code": "overloaded_error", "message": "worker 0 left", "param": None}


@pytest.mark.parametrize("path", ["/live", "/ready", "/health", "/openapi.json"])
def test_public_paths_need_no_key(served: Served, path: str) -> None:
    reply = served.ask("GET", path, headers={})
    assert reply.status == 200
    assert served.ask("HEAD", path, headers={}).body == b""
    assert served.key not in reply.body.decode()


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/models2", "/v1/../v1/models", "*", "/sleep", "/collective_rpc"]
)
def test_unknown_path_is_404(aggregated: Served, path: str) -> None:
    reply = aggregated.ask("GET", path)
    assert reply.status == 404
    assert "/v1/chat/completions" in reply.json["error"]["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", POSTS)
def test_wrong_method_is_405_with_allow(aggregated: Served, path: str, method: str) -> None:
    reply = aggregated.ask(method, path, b"{}")
    assert reply.status == 405
    assert f"{path} takes POST, not {method}" in reply.json["error"]["message"]
    assert reply.headers["allow"] == "POST"
    reply = aggregated.post("/v1/models", {})
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    ["/v1/models/", "/v1//models", "//v1/models", "http://any.host/v1/models", "/v1/models//"],
)
def test_path_with_extra_slashes_is_accepted(aggregated: Served, path: str) -> None:
    """Clients join base URL and path in many ways; clients of a proxy send the whole URL."""
    reply = aggregated.ask("GET", path)
    assert (reply.status, [card["id"] for card in reply.json["data"]]) == (200, [MODEL])
    assert aggregated.post("/v1/completions/", ASK).status == 200


def test_models_have_creation_time(aggregated: Served) -> None:
    (model,) = aggregated.client.models.list()
    began = aggregated.attempt.path.stat().st_ctime
    assert abs(model.created - began) < 600


def test_readiness_polls_are_not_failed_requests() -> None:
    answers = {"/ready 503": 67, "/health 503": 4, "other 500": 1, "/v1/workers 500": 1}
    assert failed_requests(FrontendStats(responses=answers)) == 0
    answers |= {"/v1/completions 503": 2, "/v1/rerank 502": 1, "/v1/messages broken": 1}
    answers |= {"/v1/completions 400": 9, "/v1/completions 200": 9, "/v1/responses/{id} 504": 1}
    assert failed_requests(FrontendStats(responses=answers)) == 5
    assert failed_requests(None) == 0


JSON_BODIES = [
    b"\xef\xbb\xbf" + json.dumps(ASK).encode(),
    json.dumps(ASK | {"prompt": "é 🙂"}, ensure_ascii=False).encode("utf-16"),
    json.dumps(ASK).encode("utf-16-le"),
    json.dumps(ASK).encode("utf-32"),
    b'{"prompt": "a", "max_tokens": 1, "repetition_penalty": NaN}',
    b'{"prompt": "a", "max_tokens": 1, "repetition_penalty": -Infinity}',
    b'{"prompt": "a", "max_tokens": 1, "top_k": 1e400}',
    b'{"prompt": "a", "max_tokens": 1, "unknown": %b}' % (b"[" * 200 + b"]" * 200),
    b'{"prompt": "a", "max_tokens": 1, "n": null, "stream": null, "model": null, "stop": null}',
    b'{"prompt": "a", "max_tokens": 1, "hpc_dynamo": null, "kv_transfer_params": null}',
    b'{"prompt": "a", "max_tokens": 1, "hpc_dynamo": {"priority": null, "session": "s"}}',
]


@pytest.mark.parametrize("body", JSON_BODIES)
def test_lenient_json_is_accepted(served: Served, body: bytes) -> None:
    reply = served.ask("POST", "/v1/completions", body)
    assert reply.status == 200, reply.body
    assert reply.json["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (rb'{"prompt": "\ud83d", "max_tokens": 1}', "surrogates"),
        (b"", "it is empty"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b'{"prompt": ' + b"[" * 3000 + b"]" * 3000 + b"}", "nested more than 256 deep"),
        (b'{"prompt": "a", "x": ' + b'{"a":' * 900 + b"1" + b"}" * 901, "nested more than 256"),
        (b"[" * 9_000, "nested more than 256 deep"),
        (b"[" * 200_000, "serve.max_items_per_request"),
        (b"3", "object"),
        (b'{"prompt": "a"', "delimiter"),
    ],
)
def test_invalid_json_is_rejected(served: Served, body: bytes, message: str) -> None:
    reply = served.ask("POST", "/v1/completions", body)
    assert (reply.status, reply.json["error"]["type"][:2]) in ((400, "in"), (400, "Ba"))
    assert message in reply.json["error"]["message"]


def test_version_is_forwarded_and_cache_reset_is_not(served: Served) -> None:
    assert served.ask("GET", "/version").json == {"version": "simulator"}
    assert served.post("/reset_prefix_cache", {}).status == 404


@pytest.mark.parametrize("chunked", [False, True])
def test_oversized_body_is_rejected(aggregated: Served, chunked: bool) -> None:
    body = json.dumps(ASK | {"prompt": "x" * 400_000}).encode()
    pieces: Any = iter([body[:100_000], body[100_000:]]) if chunked else body
    reply = aggregated.ask("POST", "/v1/completions", pieces)
    assert reply.status == 413
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["error"]["type"] == "request_too_large"
    assert "serve.max_body_mb" in reply.json["error"]["message"]


def test_oversized_headers_are_rejected(aggregated: Served) -> None:
    headers = {f"X-{i}": "x" * 30_000 for i in range(4)}
    reply = aggregated.ask("GET", "/v1/models", headers=headers)
    assert (reply.status, reply.headers["content-type"]) == (431, "application/json")
    assert "headers" in reply.json["error"]["message"]


def test_non_http_data_is_rejected(aggregated: Served) -> None:
    connection = aggregated.connect()
    connection.connect()
    with connection.sock as sock:
        sock.sendall(b"\x16\x03\x01 a TLS hello\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'{"error":{"message":"this is not HTTP/1.1' in answer


def test_connection_serves_several_requests(aggregated: Served) -> None:
    connection = aggregated.connect()
    headers = {"Authorization": f"Bearer {aggregated.key}"}
    connection.connect()
    sock = connection.sock
    for body in (b'{"prompt": "a", "max_tokens": 2}', b"{}", b"[", b'{"prompt": "b"}'):
        connection.request("POST", "/v1/completions", body, headers)
        answer = connection.getresponse()
        assert json.loads(answer.read())
        assert connection.sock is sock
    connection.close()


def test_endpoint_is_announced_after_all_roles_are_ready(served: Served) -> None:
    log = served.attempt.agent_log(0).read_text()
    before, announced, _ = log.partition("serving at")
    assert announced
    assert before.count("is ready after") == len(served.workers())


def test_workers_and_metrics_are_published(served: Served) -> None:
    roles = set(served.workers())
    split = {Role.prefill, Role.decode}
    assert roles == ({Role.aggregated} if len(roles) == 1 else split)
    served.post("/v1/completions", ASK)
    page = served.metrics_now()
    assert page['hpc_dynamo_requests_total{path="/v1/completions",status="200"}'] >= 1
    assert page["hpc_dynamo_time_to_first_token_seconds_count"] >= 1
