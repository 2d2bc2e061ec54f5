"""A prefill and a decode worker of real SGLang behind the endpoint, as its clients see them."""

import json
import re
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest

from tests.support.runs import until
from tests.support.unusual_bodies import said
from tests.support.vllm_serve import MODEL, REQUEST_S, Served, send

pytestmark = pytest.mark.sglang

ASKED: Any = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
TRANSFERRED_MB = "sglang:kv_transfer_total_mb_sum"
BLOCK = 16  # tokens


def ask(served: Served, **more: Any) -> Any:
    body: dict[str, Any] = {"model": MODEL, "messages": ASKED, "temperature": 0, **more}
    return served.client.chat.completions.create(**body)


def post(served: Served, path: str, **body: Any) -> tuple[int, Any]:
    content = json.dumps({"model": MODEL, **body}).encode()
    return send(f"{served.url}/{path}", served.key, content)


def test_streamed_answer_equals_whole_answer(served: Served) -> None:
    """The prefill worker's one token is neither lost nor doubled."""
    whole = ask(served, max_tokens=16)
    chunks = list(ask(served, max_tokens=16, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    assert whole.choices[0].message.content == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 1


def test_kv_cache_moves_between_workers(served: Served) -> None:
    def moved() -> float:
        return served.metric("prefill", TRANSFERRED_MB)

    before = moved()
    ask(served, messages=[{"role": "user", "content": "A prompt that no other test has."}])
    until("a transfer", lambda: moved() > before)


def test_several_answers_equal_single_answer(served: Served) -> None:
    """SGLang itself never answers `n` > 1 on two workers."""
    single = ask(served, max_tokens=8)
    several = ask(served, max_tokens=8, n=3)
    texts = [choice.message.content for choice in several.choices]
    assert texts == [single.choices[0].message.content] * 3
    assert several.usage.prompt_tokens == single.usage.prompt_tokens


def test_log_probabilities_of_each_token(served: Served) -> None:
    answer = ask(served, max_tokens=4, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == 4
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert all(token.top_logprobs[0].logprob == token.logprob for token in content), "greedy"


def test_several_prompts_in_one_request(served: Served) -> None:
    prompts = ["The capital of France is", "Ships sail on the"]
    body = {"prompt": prompts, "max_tokens": 6, "temperature": 0}
    both = post(served, "completions", **body)[1]["choices"]
    single = [post(served, "completions", **body | {"prompt": p})[1]["choices"][0] for p in prompts]
    assert [choice["text"] for choice in both] == [choice["text"] for choice in single]


def test_stop_text_ends_answer(served: Served) -> None:
    answer = ask(served, max_tokens=16, stop=["Paris"]).choices[0]
    assert answer.finish_reason == "stop"
    assert "Paris" not in answer.message.content


def test_answer_follows_schema(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    shaped = ask(served, response_format=form, max_tokens=48)
    assert json.loads(shaped.choices[0].message.content)["a"] in (1, 2)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("messages", {"max_tokens": 8, "messages": ASKED}),
        ("responses", {"max_output_tokens": 8, "input": "Say hello."}),
    ],
)
def test_messages_and_responses_are_answered(
    served: Served, path: str, body: dict[str, Any]
) -> None:
    status, answer = post(served, path, **body)
    assert status == 200, answer
    assert answer["content" if path == "messages" else "output"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "temperature"),
    ({"max_tokens": "x"}, "max_tokens"),
    ({"top_p": 3}, "top_p"),
    ({"prompt": "word " * 9000}, "context length"),
    ({"response_format": {"type": "json_schema"}}, "json_schema"),
]


@pytest.mark.parametrize(("fields", "named"), WRONG)
def test_errors_of_engine_reach_client(served: Served, fields: dict[str, Any], named: str) -> None:
    """Not as `worker 0 answered 400`."""
    body: dict[str, Any] = {"prompt": "Hi", "max_tokens": 2, **fields}
    status, answer = post(served, "completions", **body)
    assert status == 400
    assert named in answer["error"]["message"]


def test_request_that_makes_sglang_raise_is_an_error_of_the_client(served: Served) -> None:
    """SGLang answers with status 500, as if it had failed itself."""
    own = {"chat_template_kwargs": {"tokenize": True}}
    status, answer = post(served, "chat/completions", messages=ASKED, max_tokens=2, **own)
    assert status == 400
    assert answer["error"]["message"] == "the engine cannot read this request: 'tokenize'"


def test_most_log_probabilities_that_sglang_can_hand_over(served: Served) -> None:
    """With more of them the prefill worker would end."""
    before, body = served.workers(), {"prompt": "Hi", "max_tokens": 2}
    status, answer = post(served, "completions", logprobs=128, **body)
    assert status == 200, answer
    assert [len(tops) for tops in answer["choices"][0]["logprobs"]["top_logprobs"]] == [128] * 2
    status, answer = post(served, "completions", logprobs=129, **body)
    assert (status, answer["error"]["message"]) == (400, "logprobs must be at most 128")
    assert served.workers() == before, "a worker has restarted"


def test_embeddings_are_refused_with_reason(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="embedding"):
        served.client.embeddings.create(model=MODEL, input="Hi")


def test_kv_events_lead_to_prefill_worker_with_prefix(served: Served) -> None:
    """A repeated prompt: the router knows its blocks, and SGLang finds them."""
    prompt = "Ships from the north carry salt, wood and iron to the towns of the coast. " * 8
    body = {"prompt": prompt, "max_tokens": 1}

    def overlap() -> int:
        workers = served.post(f"{served.url}/route", served.key, {"prompt": prompt})["workers"]
        return max(int(worker["overlap_blocks"]) for worker in workers)

    assert overlap() == 0
    tokens = post(served, "completions", **body)[1]["usage"]["prompt_tokens"]
    until("KV events", lambda: overlap() == tokens // BLOCK)
    before = served.metric("prefill", "sglang:cached_tokens_total")
    assert post(served, "completions", **body)[0] == 200
    hits = served.metric("prefill", "sglang:cached_tokens_total") - before
    assert 0 <= tokens - hits <= BLOCK


@pytest.mark.parametrize("path", ["completions", "chat/completions", "messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_usage_counts_tokens_cached_on_prefill_worker(
    served: Served, path: str, stream: bool
) -> None:
    text = f"Ships of {path} {stream} carry salt, wood and iron to the towns of the coast. " * 6
    asked = {"prompt": text} if path == "completions" else {"messages": said(text)}
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 4, **asked}
    cached(served, path, body)
    if stream:
        options = {} if path == "messages" else {"stream_options": {"include_usage": True}}
        body |= {"stream": True, **options}
    until("tokens from the cache", lambda: cached(served, path, body) >= 5 * BLOCK)


def cached(served: Served, path: str, body: dict[str, Any]) -> int:
    """Send a request and return the number of cached tokens in its usage."""
    headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"}
    request = Request(f"{served.url}/{path}", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=REQUEST_S) as answer:
        found = re.findall(r'"cache(?:d|_read_input)_tokens": ?(\d+)', answer.read().decode())
    return max(map(int, found), default=0)


def test_repetition_penalty_is_answered(served: Served) -> None:
    """On CPUs SGLang would compile code for it, which may take minutes."""
    before = served.workers()
    assert ask(served, max_tokens=4, extra_body={"repetition_penalty": 1.2}).choices
    assert served.workers() == before, "a worker has restarted"


def test_disconnected_client_frees_both_workers(served: Served) -> None:
    stream = ask(served, stream=True, max_tokens=900, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    until(
        "engines free of a client that has gone",
        lambda: (
            not any(
                served.metric(role, "sglang:num_running_reqs") for role in ("prefill", "decode")
            )
        ),
    )
