"""A preempted job hands over to the next one, which runs on the same machine here."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo import launch
from hpc_dynamo.messages import Successor
from tests.integration.serving.served import MODEL, TLS, Served, certified, kill, serving
from tests.support.runs import hpc_dynamo, until

pytestmark = pytest.mark.slow

WORDS = ("topology=aggregated", "planner.job_handover=true")
LONG, SHORT = "cluster.slurm.signal_before_end_s=600", "cluster.slurm.signal_before_end_s=54"
ASK: dict[str, Any] = {"model": MODEL, "prompt": "hello", "extra_body": {"ignore_eos": True}}


def successor(old: Served) -> Successor | None:
    status = old.attempt.status()
    return status.successor if status else None


def handed_over(old: Served) -> Served:
    """Wait until the next job is ready after a preemption signal."""
    os.kill(old.task, signal.SIGUSR2)
    until("the successor", lambda: (s := successor(old)) and s.ready, 60)
    return Served(old.attempt.run.attempt(2), old.tls)


@pytest.fixture
def cleanup(tmp_path: Path) -> Iterator[None]:
    """End the next job after the test."""
    yield
    hpc_dynamo("stop", "name=s", cwd=tmp_path)


def answered(served: Served) -> float:
    name = 'hpc_dynamo_requests_total{path="/v1/completions",status="200"}'
    return served.metrics_now().get(name, 0.0)


@pytest.mark.slow
def test_requests_are_forwarded_to_the_next_job_until_it_dies(
    tmp_path: Path, cleanup: None
) -> None:
    with serving(tmp_path, *WORDS, LONG) as old:
        stream = old.client.completions.create(**ASK, max_tokens=4000, stream=True)
        assert next(stream).choices[0].text
        new = handed_over(old)
        at = hpc_dynamo("endpoint", "name=s", cwd=tmp_path).stdout.strip()
        assert at == new.url == old.attempt.run.url_file.read_text().strip()
        shown = hpc_dynamo("status", "--once", "name=s", cwd=tmp_path).stdout
        assert "attempt 2" in shown
        before = answered(new)
        assert old.client.completions.create(**ASK, max_tokens=4).choices[0].text
        assert answered(new) == before + 1
        assert old.metrics_now()["hpc_dynamo_requests_forwarded_total"] == 1
        assert next(stream).choices[0].text, "what was under way ends where it began"
        kill(new.task)
        assert old.client.completions.create(**ASK, max_tokens=4).choices[0].text
        until("it is noticed", lambda: (s := successor(old)) and not s.ready, 30)
        assert old.client.completions.create(**ASK, max_tokens=4).choices[0].text
        assert old.attempt.run.url_file.read_text().strip() == old.url
        stream.close()


@pytest.mark.slow
def test_all_models_are_handed_over(tmp_path: Path, cleanup: None) -> None:
    models = ("models.one.path=''", "models.two.path=''")
    with serving(tmp_path, *WORDS, LONG, *models) as old:
        handed_over(old)
        for model in ("one", "two"):
            assert old.client.completions.create(**ASK | {"model": model}).model == model
        assert old.metrics_now()["hpc_dynamo_requests_forwarded_total"] == 2


@pytest.mark.slow
def test_forwarded_requests_use_tls(tmp_path: Path, cleanup: None) -> None:
    with serving(tmp_path, *WORDS, LONG, *TLS, tls=certified(tmp_path)) as old:
        new = handed_over(old)
        assert new.url.startswith("https://")
        before = answered(new)
        assert old.client.completions.create(**ASK, max_tokens=4).choices[0].text
        assert answered(new) == before + 1


@pytest.mark.slow
def test_both_jobs_on_a_node_share_the_configured_port(tmp_path: Path, cleanup: None) -> None:
    """A forwarded request may then return; the job that forwarded it answers it."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with serving(tmp_path, *WORDS, LONG, f"serve.port={port}") as old:
        new = handed_over(old)
        assert new.url == old.url
        for _ in range(40):  # each on a connection of its own
            with Served(new.attempt).client as client:
                assert client.completions.create(**ASK, max_tokens=2).choices[0].text


@pytest.mark.slow
def test_job_forwards_until_its_end_and_no_request_fails(tmp_path: Path, cleanup: None) -> None:
    """One client reads the URL after each answer, another keeps the first one."""
    with serving(tmp_path, *WORDS, SHORT) as old:
        stop, failed, counts = threading.Event(), list[str](), {"holds": 0, "looks": 0}

        def send_requests(who: str) -> None:
            with suppress(StopIteration):
                while not stop.is_set():
                    status = old.attempt.status()
                    draining = status is None or status.phase != "serving"
                    if who == "holds" and draining:
                        return
                    url = old.url if who == "holds" else old.attempt.run.url_file.read_text()
                    try:
                        client = old.client.with_options(base_url=url.strip())
                        client.completions.create(**ASK, max_tokens=4)
                        counts[who] += 1
                    except Exception as e:  # noqa: BLE001  # whatever it was, it is counted
                        failed.append(f"{who}: {e!r}")

        threads = [threading.Thread(target=send_requests, args=(who,)) for who in counts]
        for thread in threads:
            thread.start()
        handed_over(old)
        until("its end", old.attempt.outcome, 90)
        before = counts["looks"]
        until("the other goes on", lambda: counts["looks"] > before, 10)
        stop.set()
        for thread in threads:
            thread.join()
        assert not failed
        outcome = old.attempt.outcome()
        assert outcome
        assert (outcome.exit_code, outcome.next_attempt) == (0, 2)
        assert "attempt 2 continues" in outcome.message


def test_restarted_head_knows_the_next_job_and_stop_ends_both(tmp_path: Path) -> None:
    with serving(tmp_path, *WORDS, LONG) as old:
        new, before = handed_over(old), old.attempt.endpoint()
        kill(old.head)
        killed_at = time.time()
        until("the new head", lambda: (s := old.attempt.status()) and s.at > killed_at, 60)
        until("it serves", lambda: (s := old.attempt.status()) and s.phase == "serving", 60)
        until("it knows the next job", lambda: (s := successor(old)) and s.ready, 60)
        assert len(old.attempt.run.attempts()) == 2
        assert old.attempt.endpoint() == before, "and for how long this job serves"
        done = hpc_dynamo("stop", "name=s", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not list(launch.live_attempts(old.attempt.run))
        until("no process is left", lambda: not old.processes() and not new.processes(), 30)
