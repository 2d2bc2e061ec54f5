"""Streams whose worker is killed continue on another worker."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integration.serving.served import MODEL, Served, serving
from tests.support.cut_streams import assert_unbroken
from tests.support.fault_rows import FaultRecorder
from tests.support.faults import engines, port_of
from tests.support.runs import until

# Slow enough to kill a worker in the middle of an output of 50 tokens.
SLOW = ("engine.args.timing=cpu-135m", "engine.max_restarts=20")
TALK = [{"role": "user", "content": "Tell me about foxes."}]
CHAT = ("/v1/chat/completions", {"messages": TALK})
ASKED = {"model": MODEL, "max_tokens": 50, "temperature": 0, "ignore_eos": True}
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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ("topology=aggregated", "topology.aggregated.workers=2", *SLOW)
    with serving(tmp_path_factory.mktemp("pair"), *words) as served:
        yield served


def test_stream_survives_kill_of_its_worker(pair: Served, fault: FaultRecorder) -> None:
    path, prompt = CHAT
    body = ASKED | prompt
    whole = pair.post(path, body).json
    name = 'hpc_dynamo_stream_migrations_total{outcome="completed"}'
    before = pair.metrics_now().get(name, 0)
    row = fault("SIGKILL of the worker of an open stream", "the stream continues, same greedy text")
    assert_unbroken(cut_stream(pair, path, body, fault.chance.randrange(3, 30)), whole)
    row.requests(1)
    assert pair.metrics_now()[name] == before + 1
