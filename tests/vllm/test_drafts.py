"""Real vLLM on the CPU with speculative decoding by n-grams and a reasoning parser.

The tiny model answers with random tokens and never ends its reasoning. Drafts are seldom accepted.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.support import tiny_models
from tests.support.runs import until
from tests.support.vllm import provisioned
from tests.support.vllm_serve import MODEL, REQUEST_S, Served, serving

pytestmark = pytest.mark.vllm

TOKENS = 300
LATENCIES = re.compile(r"^hpc_dynamo_inter_token_latency_seconds_count(?:{.*})? ([0-9.]+)", re.M)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    vllm, folder = provisioned(), tmp_path_factory.mktemp("drafts")
    tiny = replace(vllm, model=with_thoughts(tiny_models.llama(folder / "tiny", vllm.model)))
    drafts = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}
    words = [f"engine.args.speculative-config.{name}={value}" for name, value in drafts.items()]
    words += ["topology=aggregated", "engine.args.reasoning-parser=deepseek_r1"]
    words += ["engine.args.enable-force-include-usage=true", "engine.max_restarts=0"]
    with serving(tiny, folder, *words) as found:
        yield found


def with_thoughts(model: Path) -> Path:
    """Name two unused tokens of the model as the start and the end of reasoning."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    last = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [
        {"id": last + i, "content": text, "special": True, **flags}
        for i, text in enumerate(("<think>", "</think>"))
    ]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    return model


def latencies(served: Served) -> int:
    page = served.get(served.url.replace("/v1", "/metrics"), served.key)
    return int(sum(float(count) for count in LATENCIES.findall(page)))


def streamed(served: Served) -> list[dict[str, Any]]:
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": "Count."}], "stream": True,
        "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"}
    request = Request(f"{served.url}/chat/completions", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=REQUEST_S) as answer:
        lines = [line.removeprefix(b"data: ") for line in answer if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


def test_latencies_count_tokens_of_reasoning(served: Served) -> None:
    events = streamed(served)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    thoughts = [delta for delta in deltas if delta.get("reasoning")]
    assert events[-1]["usage"]["completion_tokens"] == TOKENS
    assert 1 < len(thoughts) < TOKENS  # some pieces have several tokens
    assert not any(delta.get("content") for delta in deltas)
    until("the metrics", lambda: latencies(served) == TOKENS - 1)
