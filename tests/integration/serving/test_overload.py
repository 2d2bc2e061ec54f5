"""Overload of a run with one slot and two queue places, and its drain."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import openai
import pytest
from openai.types import Completion

from tests.integration.serving.served import MODEL, Served, kill, serving
from tests.support.runs import until

pytestmark = pytest.mark.slow

SMALL = (
    *("topology=aggregated", "serve.max_queued_requests=2", "serve.max_requests_per_worker=1"),
    *("serve.queue_timeout_s=1", "engine.max_restarts=9", "engine.args.start-delay-s=1.5"),
)
ASK: dict[str, Any] = {"model": MODEL, "prompt": "hello"}
LONG: dict[str, Any] = ASK | {"max_tokens": 8000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("small"), *SMALL) as served:
        yield served


@contextmanager
def stream(served: Served, **ask: Any) -> Iterator[openai.Stream[Completion]]:
    """Start a request and return it once it runs."""
    with served.client.completions.create(**ask, stream=True) as chunks:
        next(chunks)
        yield chunks


def outcome(served: Served, **ask: Any) -> openai.APIStatusError | None:
    """Return the error of a request."""
    try:
        served.client.completions.create(**ask)
    except openai.APIStatusError as e:
        return e
    return None


def test_full_queue_is_429_and_long_wait_is_503(small: Served) -> None:
    with stream(small, **LONG), ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(outcome, small, **ASK) for _ in range(3)]
        failed = sorted((w.result() for w in waiting), key=lambda e: e.status_code if e else 0)
    full, *late = failed
    assert isinstance(full, openai.RateLimitError)
    assert "(serve.max_queued_requests)" in full.message
    assert 1 <= int(full.response.headers["retry-after"]) <= 60
    for error in late:
        assert isinstance(error, openai.InternalServerError)
        assert error.status_code == 503
        assert "(serve.queue_timeout_s)" in error.message
        assert int(error.response.headers["retry-after"]) >= 1
    assert outcome(small, **ASK) is None


def test_client_leaving_queue_frees_its_place(small: Served) -> None:
    with stream(small, **LONG) as first, ThreadPoolExecutor(1) as pool:
        second = pool.submit(outcome, small, **ASK)
        next(first)
        assert not second.done()
        first.close()
    assert second.result() is None


def test_only_worker_dies_and_returns(small: Served) -> None:
    (worker,) = small.workers()["aggregated"]
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(outcome, small, **LONG)
        until("it is under way", lambda: small.engine(worker["url"])["vllm:num_requests_running"])
        kill(small.pid_of(worker["url"]))
        error = under_way.result()
    assert isinstance(error, openai.InternalServerError)
    assert error.status_code == 503
    assert int(error.response.headers["retry-after"]) >= 1
    assert "no aggregated worker became ready" in error.message
    until("not ready", lambda: small.ask("GET", "/ready").status == 503, 5)
    small.wait()
    assert outcome(small, **ASK) is None


def test_drain_lets_streams_end(small: Served) -> None:
    """The run ends with this test."""
    ask = LONG | {"max_tokens": 400}
    with stream(small, **ask) as rows:
        os.kill(small.task, signal.SIGUSR2)  # Slurm's signal before the end of the walltime
        until("it drains", lambda: small.ask("GET", "/ready").status == 503, 5)
        assert small.ask("GET", "/health").json == {"status": "draining"}
        refused = outcome(small, **ASK)
        assert isinstance(refused, openai.InternalServerError)
        assert "draining" in refused.message
        assert int(refused.response.headers["retry-after"]) >= 1
        rest = list(rows)
    assert len(rest) + 1 == 400
    assert rest[-1].choices[0].finish_reason == "length"
    ended = until("the outcome", small.attempt.outcome, 20)
    assert ended.exit_code == 0
    assert "the walltime ended" in ended.message
    until("all processes are gone", lambda: not small.processes(), 10)


def test_slow_reader_slows_only_its_own_stream(aggregated: Served) -> None:
    """The response has megabytes, more than all socket buffers hold."""
    message = {"role": "user", "content": "hello"}
    sizes = {"n": 16, "logprobs": True, "top_logprobs": 20, "max_tokens": 300}
    ask = {"messages": [message], "stream": True, "ignore_eos": True, **sizes}
    headers = {"Authorization": f"Bearer {aggregated.key}"}
    with closing(aggregated.connect()) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(ask), headers)
        until("it is under way", lambda: aggregated.busy() == 16, 10)
        with stream(aggregated, **ASK, max_tokens=50, extra_body={"ignore_eos": True}) as rows:
            assert len(list(rows)) == 49
        until("the engine has done its work", lambda: aggregated.busy() == 0, 20)
        assert aggregated.metrics_now()["hpc_dynamo_requests_running"] == 1, "it was buffered"
        with connection.getresponse() as answer:
            body = answer.read()
    assert body.endswith(b"data: [DONE]\n\n")
    events = [json.loads(event[6:]) for event in body.split(b"\n\n")[:-2]]
    rows_of = [c["logprobs"]["content"] for e in events for c in e["choices"] if c["logprobs"]]
    assert sum(map(len, rows_of)) == 16 * 300
