"""Real vLLM on the CPU behind the endpoint: what its own client gets, and what is freed."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest

from hpc_dynamo.config import Config, Device, Engine
from hpc_dynamo.demo.provision import DemoEngine
from hpc_dynamo.engines.vllm.adapter import VllmAdapter
from hpc_dynamo.kv.events import BlockHash, BlockStored, KvEvent, decode_events
from hpc_dynamo.run import Run
from hpc_dynamo.wire import KvEventSubscriber
from tests.support.runs import latest
from tests.support.vllm import provisioned

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

READY_S = 280.0
FREED_S = 30.0
REPLAY_S = 30.0
BLOCK = VllmAdapter().block_tokens(Config(engine=Engine(device=Device.cpu)))
MODEL = "smol"
ASKED: Any = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
LONG: Any = [{"role": "user", "content": "Tell a very long story about the sea and its ships."}]


@dataclass
class Served:
    """A serving run of one prefill and one decode worker."""

    url: str
    key: str
    token: str
    log: Path  # log of the agent

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=120)

    def get(self, url: str, key: str) -> str:
        with urlopen(Request(url, headers={"Authorization": f"Bearer {key}"}), timeout=30) as got:
            return str(got.read().decode())

    def workers(self) -> dict[str, str]:
        """URL by role."""
        rows = json.loads(self.get(f"{self.url}/workers", self.key))["data"]
        return {row["role"]: row["url"] for row in rows}

    def tokens(self, role: str, prompt: str) -> list[int]:
        body = json.dumps({"model": MODEL, "prompt": prompt}).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        asked = Request(f"{self.workers()[role]}/tokenize", body, headers)
        with urlopen(asked, timeout=30) as got:
            return list(json.loads(got.read())["tokens"])

    def metric(self, role: str, name: str) -> float:
        text = self.get(f"{self.workers()[role]}/metrics", self.token)
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.fixture(scope="module")
def vllm() -> DemoEngine:
    return provisioned()


@pytest.fixture(scope="module")
def served(vllm: DemoEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ("engine.args.enable-auto-tool-choice=true", "engine.args.tool-call-parser=hermes")
    split = ("topology=disaggregated", "router.conditional_disaggregation=false")
    with serving(vllm, tmp_path_factory.mktemp("serve"), *split, *words) as found:
        yield found


@contextmanager
def serving(vllm: DemoEngine, folder: Path, *words: str) -> Iterator[Served]:
    """`hpc-dynamo serve` of the small model on this machine."""
    own = [f"engine.python={vllm.python}", f"model.path={vllm.model}", f"model.name={MODEL}"]
    argv = [sys.executable, "-m", "hpc_dynamo", "serve", "engine=vllm-cpu", "name=v"]
    argv += ["cluster.launcher=local", *own, *words]
    with (folder / "serve.log").open("wb") as out:
        process = subprocess.Popen(argv, cwd=folder, stdout=out, stderr=out, env=dict(os.environ))
    try:
        found = _endpoint(Run(folder / "runs" / "v"), process, folder / "serve.log")
        yield found
        found.client.close()
    finally:
        process.terminate()
        process.wait(timeout=60)


def _endpoint(run: Run, process: subprocess.Popen[bytes], log: Path) -> Served:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        endpoint = latest(run.path).endpoint() if run.attempts() else None
        if endpoint:
            token, log = run.secrets().token, latest(run.path).agent_log(0)
            return Served(endpoint.url, run.api_key(), token, log)
        time.sleep(0.5)  # a file is looked for
    raise AssertionError(f"no endpoint within {READY_S:.0f} s: {log.read_text()}")


def ask(served: Served, **more: Any) -> Any:
    """A chat completion from plain dictionaries, as users write them."""
    body: dict[str, Any] = {"model": MODEL, "messages": ASKED, **more}
    return served.client.chat.completions.create(**body)


def _stream_text(served: Served, **more: Any) -> tuple[str, Any]:
    text, usage = "", None
    stream = ask(served, stream=True, stream_options={"include_usage": True}, **more)
    for chunk in stream:
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    return text, usage


def test_whole_and_streamed_answers_and_their_usage(served: Served) -> None:
    """The prefill worker's one token is neither lost nor doubled."""
    sampling: dict[str, Any] = {"temperature": 0, "max_tokens": 16}
    whole = ask(served, **sampling)
    text, usage = _stream_text(served, **sampling)
    assert "Paris" in text
    assert whole.choices[0].message.content == text
    assert usage.completion_tokens == whole.usage.completion_tokens > 1
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 10
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_several_choices_and_logprobs(served: Served) -> None:
    answer = ask(served, n=2, max_tokens=4, logprobs=True, top_logprobs=2)
    assert len(answer.choices) == 2
    assert all(len(c.logprobs.content) == 4 for c in answer.choices)


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}


def test_tool_calls_pass_through_unchanged(served: Served) -> None:
    """The answers of a model of this size are not judged."""
    asked: dict[str, Any] = {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 48}
    alone = replace(served, url=f"{served.workers()['decode']}/v1", key=served.token)
    calls = [
        ask(to, temperature=0, **asked).choices[0].message.tool_calls for to in (served, alone)
    ]
    names, arguments = zip(
        *((c.function.name, c.function.arguments) for (c,) in calls), strict=True
    )
    assert names == ("weather", "weather")
    assert arguments[0] == arguments[1]


def test_structured_output(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    shaped = ask(served, response_format=form, max_tokens=48, temperature=0)
    assert json.loads(shaped.choices[0].message.content)["a"] in (1, 2)


def test_too_long_prompt_is_rejected_before_prefill(served: Served) -> None:
    before = served.metric("prefill", "vllm:prompt_tokens_total")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens"):
        served.client.completions.create(model=MODEL, prompt="word " * 3000, max_tokens=1)
    assert served.metric("prefill", "vllm:prompt_tokens_total") == before


def test_disconnected_client_frees_both_workers(served: Served) -> None:
    stream = ask(
        served, messages=LONG, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert served.metric("decode", "vllm:num_requests_running") == 1
    stream.close()
    deadline = time.monotonic() + FREED_S
    busy = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    while any(served.metric(role, name) for role in ("prefill", "decode") for name in busy):
        assert time.monotonic() < deadline, "the engines still work for a client that has gone"
        time.sleep(0.2)  # engines announce nothing


def test_engines_require_token_of_run(served: Served) -> None:
    """Also where vLLM itself would not ask for one."""
    for url in served.workers().values():
        for path in ("/metrics", "/tokenize", "/v1/models", "/invocations"):
            with pytest.raises(HTTPError) as refused:
                served.get(url + path, served.key)
            refused.value.close()
            assert refused.value.code == 401


async def published(served: Served, role: str) -> list[KvEvent]:
    """Return all KV events of a worker, by a replay since its start."""
    started = re.search(
        rf"\({role}\) on .* starts: .*--kv-events-config (\{{.*?\}})", served.log.read_text()
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
    tokens = served.tokens(role, text)
    assert len(tokens) > 2 * BLOCK
    served.client.completions.create(model=MODEL, prompt=text, max_tokens=1)
    told = dict[BlockHash, list[int]]()
    for event in asyncio.run(published(served, role)):
        if isinstance(event, BlockStored):
            assert (event.block_size, event.medium) == (BLOCK, "GPU")
            before = [] if event.parent_block_hash is None else told[event.parent_block_hash]
            for i, name in enumerate(event.block_hashes):
                before = before + event.token_ids[i * BLOCK : (i + 1) * BLOCK]
                told[name] = before
    wanted = [tokens[:end] for end in range(BLOCK, len(tokens), BLOCK)]
    assert [prefix for prefix in told.values() if prefix in wanted] == wanted


def test_responses_and_messages_pass_through(served: Served) -> None:
    answer = served.client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8)
    assert answer.output
    body = {"model": MODEL, "max_tokens": 8, "messages": ASKED}
    headers = {"x-api-key": served.key, "Content-Type": "application/json"}
    asked = Request(f"{served.url}/messages", json.dumps(body).encode(), headers)
    with urlopen(asked, timeout=60) as got:
        assert json.loads(got.read())["type"] == "message"
