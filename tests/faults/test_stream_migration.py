"""Streams whose worker is killed or stopped continue on another worker, in all formats."""

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from itertools import pairwise
from typing import Any

import pytest

from tests.integration.serving.served import MODEL, Served, serving
from tests.support.cut_streams import assert_unbroken
from tests.support.fault_rows import FaultRecorder
from tests.support.faults import engines, port_of
from tests.support.runs import until
from tests.support.typed_streams import FORM, assert_unbroken_events

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
# An output takes seconds, also after the last stream has begun on a busy machine. It ends at its
# limit.
SLOW = (
    *("engine.args.timing=cpu-135m", "engine.args.time-scale=3"),
    *("engine.args.mean-output-tokens=100000", "engine.max_restarts=20"),
)
HANG = ("engine.hang_timeout_s=4", "engine.stop_timeout_s=60", "router=round_robin")
PROMPT, LIMIT = "Tell me about foxes.", 90
TALK = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": LIMIT}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: TALK,
    COMPLETIONS: {"prompt": PROMPT, "max_tokens": LIMIT},
    MESSAGES: TALK,
    RESPONSES: {"input": PROMPT, "max_output_tokens": LIMIT},
}
USAGE = {"stream_options": {"include_usage": True}}
MOVED = 'hpc_dynamo_stream_migrations_total{outcome="completed"}'

Json = dict[str, Any]


def body_of(path: str) -> Json:
    return BODIES[path] | {"model": MODEL, "temperature": 0}


class OpenStream:
    """A stream of which some lines were read."""

    def __init__(self, served: Served, path: str, lines: int) -> None:
        self.path, self._connection = path, served.connect()
        options = {} if path in FORM else USAGE
        body = json.dumps(body_of(path) | {"stream": True} | options)
        self._connection.request("POST", path, body, {"Authorization": f"Bearer {served.key}"})
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        self._begun = b"".join(self._response.readline() for _ in range(lines))

    def __enter__(self) -> HTTPConnection:
        return self._connection

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def pause(self) -> float:
        """Read the rest; return the longest time between two lines in seconds."""
        lines, times = [self._begun], [time.monotonic()]
        for line in self._response:
            lines.append(line)
            times.append(time.monotonic())
        self._content = b"".join(lines)
        return max(later - earlier for earlier, later in pairwise(times))

    def check(self, whole: Json) -> None:
        """Assert that the stream is one unbroken answer."""
        content = self._content
        if self.path in FORM:
            assert_unbroken_events(self.path, content, whole)
            return
        data = [line[6:] for line in content.splitlines() if line]
        assert data.count(b"[DONE]") == 1
        assert data.pop() == b"[DONE]"
        assert_unbroken([json.loads(each) for each in data], whole)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ("topology=aggregated", "topology.aggregated.workers=2", *SLOW, *HANG)
    with serving(tmp_path_factory.mktemp("pair"), *words) as served:
        yield served


@pytest.fixture(scope="module")
def whole(pair: Served) -> dict[str, Json]:
    """Return the response to each request, without a fault."""
    with ThreadPoolExecutor() as pool:
        asked = {path: pool.submit(pair.post, path, body_of(path)) for path in BODIES}
        return {path: answer.result().json for path, answer in asked.items()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_streams_survive(
    pair: Served, whole: dict[str, Json], number: signal.Signals, fault: FaultRecorder
) -> None:
    """Each worker has a stream of each format."""
    until("both workers", lambda: len(pair.workers().get("aggregated", [])) == 2, 60)
    moved = pair.metrics_now().get(MOVED, 0)
    paths = [path for path in BODIES for _ in range(2)]
    lines = [fault.chance.randrange(10, 20) for _ in paths]
    with ExitStack() as stack, ThreadPoolExecutor(len(paths)) as pool:
        streams = list(pool.map(partial(OpenStream, pair), paths, lines))
        for each in streams:
            stack.enter_context(each)
        url = fault.chance.choice(pair.workers()["aggregated"])["url"]
        (engine,) = engines(pair.attempt.path, port_of(url))
        row = fault(f"{number.name} of a worker with open streams", "they continue, same text")
        os.kill(engine, number)
        row.recovery_s = max(pool.map(OpenStream.pause, streams))
        row.requests(len(streams))
        for each in streams:
            each.check(whole[each.path])
    assert pair.metrics_now()[MOVED] > moved
