"""Two workers and two frontend processes behind TLS: crashes, restarts and shutdown."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion

from tests.integration.serving.served import MODEL, TLS, Served, certified, kill, serving
from tests.support.runs import hpc_dynamo, until

pytestmark = pytest.mark.slow

PAIR = (
    *("topology=aggregated", "topology.aggregated.workers=2", "serve.frontend_processes=2"),
    "engine.max_restarts=20",
)
ASK: dict[str, Any] = {"model": MODEL, "prompt": "hello", "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pair")
    with serving(folder, *PAIR, *TLS, tls=certified(folder)) as served:
        yield served


def running(served: Served) -> list[str]:
    """Return the URLs of busy workers."""
    return [url for url, load in served.loads().items() if load]


def both_are_there(served: Served) -> None:
    until("two workers", lambda: len(served.loads()) == 2, 30)


def test_client_and_server_over_tls(pair: Served) -> None:
    assert pair.url.startswith("https://")
    assert pair.client.completions.create(**ASK, max_tokens=2).choices
    stranger = openai.OpenAI(base_url=pair.url, api_key=pair.key, max_retries=0)
    with stranger, pytest.raises(openai.APIConnectionError):
        stranger.models.list()


def test_sampled_stream_with_seed_of_dead_worker_ends_with_error_event(pair: Served) -> None:
    """Other streams continue on another worker."""
    stream = pair.client.completions.create(**ASK, max_tokens=8000, seed=1, stream=True)
    assert next(stream).choices[0].text
    (url,) = until("it is seen", lambda: running(pair), 10)
    kill(pair.pid_of(url))
    with pytest.raises(openai.APIError) as error:
        list(stream)
    assert type(error.value) is openai.APIError, "the connection was cut"
    assert f"at {url}" in error.value.message or "left" in error.value.message
    assert isinstance(error.value.body, dict)
    assert error.value.body["type"] == "overloaded_error"


def completion(served: Served) -> Completion:
    answer: Completion = served.client.completions.create(**ASK, max_tokens=200)
    return answer


def test_unstarted_requests_are_retried_on_other_worker(pair: Served) -> None:
    both_are_there(pair)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(completion, pair) for _ in range(8)]
        urls = until("both work", lambda: len(running(pair)) == 2 and running(pair), 10)
        kill(pair.pid_of(urls[0]))
        answers = [each.result() for each in asked]
    assert {a.usage.completion_tokens for a in answers if a.usage} == {200}
    assert len({a.choices[0].text for a in answers}) == 1


def test_returned_worker_is_used_soon(pair: Served) -> None:
    """No other worker is ready, so the returned one answers."""
    both_are_there(pair)
    log = pair.attempt.agent_log(0)
    size = log.stat().st_size

    def said(what: str) -> list[str]:
        return [line for line in log.read_bytes()[size:].decode().splitlines() if what in line]

    for url in pair.loads():
        kill(pair.pid_of(url))
    until("the head knows", lambda: len(said(": failed ")) == 2, 10)
    answer = pair.client.completions.create(**ASK, max_tokens=1)
    answered = datetime.now()
    assert answer.choices[0].text
    ready = said("is ready after")[0]
    at = datetime.strptime(ready[:23], "%Y-%m-%d %H:%M:%S,%f")
    # On a quiet machine it takes a fraction of a second.
    assert (answered - at).total_seconds() < 20


def reached(served: Served, marks: Iterator[str], indexes: set[int]) -> int:
    """Send requests until each of these frontends has answered; return their number."""
    sizes = {i: served.attempt.frontend_log(i).stat().st_size for i in indexes}

    def said(index: int) -> bytes:
        return served.attempt.frontend_log(index).read_bytes()[sizes[index] :]

    for count, mark in enumerate(marks, 1):
        path = f"/nothing/{mark}"
        assert served.ask("GET", path).status == 404
        if all(b"/nothing/" in said(index) for index in indexes):
            return count
    raise AssertionError(f"frontends {indexes} did not all answer")


def test_frontends_share_port_and_metrics(pair: Served) -> None:
    name = 'hpc_dynamo_requests_total{path="other",status="404"}'
    before = pair.metrics_now()[name]
    asked = reached(pair, map(str, range(200)), {0, 1})
    until("merged figures", lambda: pair.metrics()[name] == before + asked, 10)


def test_dead_frontend_is_restarted(pair: Served) -> None:
    both_are_there(pair)
    assert pair.client.completions.create(**ASK, max_tokens=2).choices
    before = pair.metrics_now()
    with ExitStack() as stack:
        streams = [
            stack.enter_context(pair.client.completions.create(**ASK, max_tokens=8000, stream=True))
            for _ in range(12)
        ]
        victim = pair.frontends()[0]
        kill(victim)
        # Its command line is empty before its sockets are closed.
        until("it is gone", lambda: not Path(f"/proc/{victim}").exists(), 10)
        for _ in range(10):
            assert pair.ask("GET", "/live").status == 200
        alive = sum(map(goes_on, streams))
        assert 0 < alive < 12, "all were on the same frontend"
        until("its work is freed", lambda: pair.busy() == alive, 10)
    until("it is back", lambda: pair.frontends().get(0, victim) != victim, 20)
    reached(pair, map(str, range(2000)), {0, 1})
    until("nothing is left", lambda: pair.metrics()["hpc_dynamo_requests_running"] == 0, 10)
    name = 'hpc_dynamo_requests_total{path="/v1/completions",status="200"}'
    assert pair.metrics()[name] >= before[name], "the figures of the dead are kept"


def goes_on(stream: openai.Stream[Any]) -> bool:
    """Send requests while a frontend dies; those in progress may fail. The HTTP library of the
    client determines the error of a closed connection."""
    try:
        return len([next(stream) for _ in range(200)]) == 200
    except Exception:  # noqa: BLE001  # below openai's client there are several HTTP libraries
        return False


def test_stop_ends_streams_and_all_processes(pair: Served, tmp_path: Path) -> None:
    """The run ends with this test."""
    both_are_there(pair)
    stream = pair.client.completions.create(**ASK, max_tokens=8000, stream=True)
    assert next(stream).choices[0].text
    stopped = hpc_dynamo("stop", str(pair.attempt.run.path), cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    with pytest.raises(openai.APIError) as error:
        list(stream)
    assert type(error.value) is openai.APIError, "the connection was cut"
    # The head reports the outcome before it ends.
    until("no process is left", lambda: pair.processes() == [], 10)
    ended = pair.attempt.outcome()
    assert ended
    assert (ended.exit_code, ended.message) == (0, "stopped")
