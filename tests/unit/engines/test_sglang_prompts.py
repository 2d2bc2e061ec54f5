"""Prompts that would end an SGLang engine are refused with status 400."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpc_dynamo.config import Config, Engine, Model, Pool, Topology, TopologyKind
from hpc_dynamo.dispatch import RequestBuilder, RequestContext
from hpc_dynamo.dispatch.worker_client import OBJECT_DECODER
from hpc_dynamo.engines import CHAT, COMPLETIONS, MAX_IDS
from hpc_dynamo.engines.sglang.prompt_check import vocabulary_size
from hpc_dynamo.errors import RequestFailed

EMBEDDINGS = "/v1/embeddings"
EMPTY, UNKNOWN = "an element of the list is empty", "is out of the vocabulary"
INTEGERS = "token ids must be integers"
DISAGGREGATED = Topology(kind=TopologyKind.disaggregated, prefill=Pool(), decode=Pool())
AGGREGATED = Topology(kind=TopologyKind.aggregated, aggregated=Pool())


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 100}))
    return Config(
        engine=Engine(name="sglang"), model=Model(path=str(tmp_path)), topology=DISAGGREGATED
    )


def build(config: Config, path: str, body: dict[str, Any], *, raw: bool) -> str:
    """The error of a request, empty if it may be sent. `raw`: as the endpoint reads bodies."""
    content = msgspec.json.encode(body)
    read = OBJECT_DECODER.decode(content) if raw else body
    try:
        asyncio.run(RequestBuilder(config).build(path, content, read, RequestContext()))
    except RequestFailed as e:
        return f"{e.status} {e.message}"
    return ""


COUNT = "n must be at least 1, got"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (COMPLETIONS, {"prompt": ["a", ""]}, EMPTY),
    (COMPLETIONS, {"prompt": [""]}, EMPTY),
    (COMPLETIONS, {"prompt": [[1], []]}, EMPTY),
    (COMPLETIONS, {"prompt": [100]}, UNKNOWN),
    (COMPLETIONS, {"prompt": [1, -1]}, UNKNOWN),
    (COMPLETIONS, {"prompt": [[1], [2, 10**30]]}, UNKNOWN),
    (f"{COMPLETIONS}?x=1", {"prompt": [100]}, UNKNOWN),
    (EMBEDDINGS, {"input": [[1, 100]]}, UNKNOWN),
    (EMBEDDINGS, {"input": ["a", ""]}, EMPTY),
    (COMPLETIONS, {"prompt": "a", "n": 0}, f"{COUNT} 0"),
    (CHAT, {"messages": [], "n": -1}, f"{COUNT} -1"),
    (CHAT, {"messages": [], "n": False}, f"{COUNT} 0"),
    (CHAT, {"messages": [], "n": -1.0}, f"{COUNT} -1"),
    (CHAT, {"messages": [], "n": "-1"}, f"{COUNT} -1"),
    (COMPLETIONS, {"prompt": "a", "logprobs": 101}, "logprobs must be at most 100"),
    (COMPLETIONS, {"prompt": "a", "logprobs": "1e9"}, "logprobs must be at most 100"),
    (CHAT, {"messages": [], "top_logprobs": 101}, "top_logprobs must be at most 100"),
    ("/v1/responses", {"input": "a", "top_logprobs": 129}, "top_logprobs must be at most"),
    ("/generate", {"text": "a", "top_logprobs_num": [1, 500]}, "top_logprobs_num must be at most"),
    (COMPLETIONS, {"prompt": [1, 1e9]}, INTEGERS),
    (COMPLETIONS, {"prompt": [1.0]}, INTEGERS),
    (COMPLETIONS, {"prompt": [1, "999999999"]}, INTEGERS),
    (COMPLETIONS, {"prompt": [True]}, INTEGERS),
    (COMPLETIONS, {"prompt": [[1], ["-7"]]}, INTEGERS),
    (COMPLETIONS, {"prompt": [[1], [[100]]]}, INTEGERS),
    (COMPLETIONS, {"prompt": [[1], 100]}, "several types"),
    (COMPLETIONS, {"prompt": "a", "stop_token_ids": [100]}, UNKNOWN),
    (CHAT, {"messages": [], "input_ids": [100]}, UNKNOWN),
    (CHAT, {"messages": [], "stop_token_ids": ["100"]}, INTEGERS),
    ("/generate", {"input_ids": [100]}, UNKNOWN),
    ("/generate", {"input_ids": [[1], [-1]]}, UNKNOWN),
    ("/generate", {"input_ids": []}, "input_ids is empty"),
    ("/generate", {"text": ""}, "text is empty"),
    ("/generate", {"text": ["a", ""]}, EMPTY),
    ("/generate", {"text": "a", "token_ids_logprob": [None, [1, 100]]}, UNKNOWN),
    ("/generate", {"text": "a", "sampling_params": {"n": 0}}, f"{COUNT} 0"),
    ("/generate", {"text": "a", "sampling_params": [{}, {"stop_token_ids": [-1]}]}, UNKNOWN),
    ("/encode", {"input_ids": [100]}, UNKNOWN),
    ("/v1/score", {"query": [1], "items": [[100]]}, UNKNOWN),
    ("/v1/score", {"query": [100], "items": [[1]]}, UNKNOWN),
    ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [100]}, UNKNOWN),
    ("/v1/rerank", {"query": "a", "documents": [""]}, EMPTY),
]
SENT: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"prompt": ["a", "b"]}),
    (COMPLETIONS, {"prompt": [0, 99]}),
    (COMPLETIONS, {"prompt": [[0], [99]]}),
    (COMPLETIONS, {"prompt": ["7", "8"]}),
    (COMPLETIONS, {"prompt": "a", "n": "2", "stop_token_ids": [1]}),
    (EMBEDDINGS, {"input": [{"text": "a"}]}),
    ("/generate", {"input_ids": [1], "sampling_params": {"n": 2, "stop_token_ids": []}}),
    ("/generate", {"text": ["a"], "token_ids_logprob": [None, [1]], "sampling_params": None}),
    ("/v1/score", {"query": "a", "items": ["b"], "label_token_ids": [1, 2]}),
    (COMPLETIONS, {"prompt": "a", "logprobs": 100}),
    (CHAT, {"messages": [], "logprobs": True, "top_logprobs": None}),
    # SGLang refuses these itself.
    (COMPLETIONS, {"prompt": ""}),
    (CHAT, {"messages": [], "n": "two"}),
    (CHAT, {"messages": [], "n": None}),
    (COMPLETIONS, {"prompt": []}),
    (COMPLETIONS, {"prompt": None}),
    (COMPLETIONS, {"prompt": {"a": ""}}),
    (COMPLETIONS, {}),
    (CHAT, {"messages": [], "prompt": [100]}),
    (EMBEDDINGS, {"input": "a", "prompt": [""]}),
]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(("path", "body", "reason"), REFUSED)
def test_prompts_that_end_sglang_are_rejected(
    config: Config, path: str, body: dict[str, Any], reason: str, raw: bool
) -> None:
    for topology in (DISAGGREGATED, AGGREGATED):
        said = build(replace(config, topology=topology), path, body, raw=raw)
        assert said.startswith("400 ")
        assert reason in said


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(("path", "body"), SENT)
def test_other_prompts_are_accepted(
    config: Config, path: str, body: dict[str, Any], raw: bool
) -> None:
    assert build(config, path, body, raw=raw) == ""


def test_unknown_vocabulary_rejects_only_negative_ids(config: Config) -> None:
    unknown = replace(config, model=Model(name="m"))
    assert build(unknown, COMPLETIONS, {"prompt": [10**6]}, raw=True) == ""
    assert UNKNOWN in build(unknown, COMPLETIONS, {"prompt": [-1]}, raw=True)


def test_other_engines_have_no_prompt_check(config: Config) -> None:
    vllm = replace(config, engine=Engine(name="vllm"))
    for path, body, _ in REFUSED:
        assert build(vllm, path, body, raw=True) == ""


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ('{"vocab_size": 5}', 5),
        ('{"text_config": {"vocab_size": 7}}', 7),
        ("{}", 0),
        ("[]", 0),
        ("no JSON", 0),
        ('{"vocab_size": "5"}', 0),
        ('{"text_config": null}', 0),
        ("", 0),
    ],
)
def test_vocabulary_size(tmp_path: Path, content: str, size: int) -> None:
    assert vocabulary_size(tmp_path) == 0
    (tmp_path / "config.json").write_text(content)
    assert vocabulary_size(tmp_path) == size


def test_many_token_ids_are_refused_without_a_look_at_each(config: Config) -> None:
    """The check of 16 million ids took seconds, in which no stream continued."""
    many = b'{"input": [[%b1]]}' % (b"1," * MAX_IDS)
    body = OBJECT_DECODER.decode(many)
    with pytest.raises(RequestFailed, match=f"more than {MAX_IDS} token ids"):
        asyncio.run(RequestBuilder(config).build(EMBEDDINGS, many, body, RequestContext()))
