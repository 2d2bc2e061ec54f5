"""Streams whose worker is killed continue on another worker."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integration.serving.served import MODEL, Served, serving
from tests.support.faults import engines, port_of
from tests.support.runs import until

# Slow enough to kill a worker in the middle of an output of 60 tokens.
SLOW = ("engine.args.timing=cpu-135m", "engine.args.time-scale=2", "engine.max_restarts=20")
TALK = [{"role": "user", "content": "Tell me about foxes."}]
CHAT = ("/v1/chat/completions", {"messages": TALK})
TEXT = ("/v1/completions", {"prompt": "Tell me about foxes."})
ASKED = {"model": MODEL, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}

Event = dict[str, Any]


@contextmanager
def opened(served: Served, path: str, body: Event) -> Iterator[Iterator[bytes]]:
    """Send a request; yield the lines of its stream."""
    connection = served.connect()
    try:
        headers = {"Authorization": f"Bearer {served.key}"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200
        yield (line for line in response if line.strip())
    finally:
        connection.close()


def events(lines: list[bytes]) -> list[Event]:
    """Return the chunks of a stream that ends with one [DONE]."""
    data = [line.removeprefix(b"data: ").strip() for line in lines]
    assert data.count(b"[DONE]") == 1
    assert data.pop() == b"[DONE]"
    return [json.loads(each) for each in data]


def text_of(chunks: list[Event]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


def cut_stream(served: Served, path: str, body: Event, after: int) -> list[Event]:
    """Kill the worker of a stream after some lines; return the chunks of the whole stream."""
    with opened(served, path, body | USAGE) as lines:
        seen = [next(lines) for _ in range(after)]
        (url,) = until("it decodes", lambda: busy(served), 20)
        for pid in engines(served.attempt.path, port_of(url)):
            os.kill(pid, signal.SIGKILL)
        return events([*seen, *lines])


def busy(served: Served) -> list[str]:
    return [url for url, load in served.loads().items() if load]


def assert_unbroken(chunks: list[Event], whole: Event) -> None:
    """Assert that a stream has the content of an undisturbed response."""
    choice = whole["choices"][0]
    assert text_of(chunks) == choice.get("text") or choice["message"]["content"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    roles = [c for chunk in chunks for c in chunk["choices"] if "role" in c.get("delta", {})]
    assert len(roles) == ("message" in choice)
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert [reason for reason in reasons if reason] == [choice["finish_reason"]]
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(usages) == 1
    assert usages[0] | {"prompt_tokens_details": None} == whole["usage"] | {
        "prompt_tokens_details": None
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ("topology=aggregated", "topology.aggregated.workers=2", *SLOW)
    with serving(tmp_path_factory.mktemp("pair"), *words) as served:
        yield served


@pytest.mark.parametrize(("path", "prompt"), [CHAT, TEXT], ids=["chat", "completion"])
def test_stream_survives_kill_of_its_worker(pair: Served, path: str, prompt: Event) -> None:
    body = ASKED | prompt
    whole = pair.post(path, body).json
    chunks = cut_stream(pair, path, body, after=12)
    assert_unbroken(chunks, whole)
