"""`hpc-dynamo route` in front of simulators, with processes and sockets."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.common.processes import free_port
from hpc_dynamo import launch
from hpc_dynamo.run import Run
from tests.integration.serving.routed import routing, rows
from tests.integration.serving.served import Served
from tests.support.runs import HANG_S, hpc_dynamo, until
from tests.support.simulator import KEY, MODEL, Rank, simulator
from tests.support.terminal import ends, on_a_terminal

pytestmark = pytest.mark.slow


def states(served: Served) -> list[str]:
    return [row["state"] for row in rows(served)]


def ask(served: Served, **fields: Any) -> str:
    answer = served.client.completions.create(model=MODEL, prompt="Hi", max_tokens=4, **fields)
    return str(answer.choices[0].text)


@pytest.fixture
def ranks() -> Iterator[list[Rank]]:
    with simulator() as one, simulator() as two:
        yield [one, two]


def test_route_serves_official_client(tmp_path: Path, ranks: list[Rank]) -> None:
    urls = ",".join(rank.url for rank in ranks)
    with routing(tmp_path, "--workers", urls, "router=round_robin") as served:
        until("both", lambda: states(served) == ["ready", "ready"])
        assert [model.id for model in served.client.models.list()] == [MODEL]
        messages: Any = [{"role": "user", "content": "Hello"}]
        chat = served.client.chat.completions
        stream = chat.create(model=MODEL, messages=messages, max_tokens=8, stream=True)
        assert any(part.choices and part.choices[0].delta.content for part in stream)
        for _ in range(3):
            assert ask(served)
        until("their share", lambda: [r["load"]["served"] for r in rows(served)] == [2, 2])
        keys = served.attempt.run.secrets_file, served.attempt.run.key_file
        assert [key.stat().st_mode & 0o777 for key in keys] == [0o600, 0o600]
        shown = hpc_dynamo("status", "name=r", "--once", cwd=tmp_path)
        assert "serving" in shown.stdout, shown.stdout + shown.stderr
        said = hpc_dynamo("chat", "name=r", "--max-tokens=1", "Hello", cwd=tmp_path)
        assert said.stdout.strip(), said.stderr
        log = hpc_dynamo("logs", "name=r", "frontend-0", cwd=tmp_path)
        assert "listens on" in log.stdout, log.stdout + log.stderr
        ended = hpc_dynamo("stop", "name=r", cwd=tmp_path)
        assert "stopped" in ended.stdout, ended.stdout + ended.stderr
    assert all(rank.process.poll() is None for rank in ranks), "the engines go on"


@pytest.mark.slow
def test_route_with_prefill_and_decode_engines(tmp_path: Path) -> None:
    with simulator("--role", "prefill") as prefill, simulator("--role", "decode") as decode:
        words = ("--prefill", prefill.url, "--decode", decode.url, "engine.name=simulator")
        with routing(tmp_path, *words, "router.conditional_disaggregation=false") as served:
            assert ask(served)
            until("both", lambda: [r["load"]["served"] for r in rows(served)] == [1, 1])


@pytest.mark.slow
def test_route_waits_for_engine_that_is_down(tmp_path: Path, ranks: list[Rank]) -> None:
    with simulator() as third:
        port = third.url.rpartition(":")[2]
    with routing(tmp_path, "--workers", f"{ranks[0].url},{third.url}") as served:
        assert states(served) == ["ready", "starting"]
        assert "cannot be reached" in rows(served)[1]["detail"]
        assert ask(served)
        with simulator("--port", port) as back:
            until("it has come", lambda: states(served) == ["ready", "ready"])
            back.process.kill()
            until("it has gone", lambda: states(served) == ["ready", "failed"])
            assert ask(served)
        with simulator("--port", port):
            until("it is back", lambda: states(served) == ["ready", "ready"])
            served.client.completions.create(
                model=MODEL, prompt="Hi", max_tokens=1, extra_headers={"X-Worker-Rank": "1"}
            )


def _telling() -> tuple[str, str]:
    """Return options of a simulator that publishes KV events, and their address."""
    live, replay = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    settings = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": live,
        "replay_endpoint": replay,
    }
    return json.dumps(settings), f"{live}|{replay}"


def compute(rank: Rank, prompt: list[int]) -> None:
    """Send a request directly to an engine."""
    with openai.OpenAI(
        base_url=f"{rank.url}/v1", api_key=KEY, max_retries=0, timeout=HANG_S
    ) as client:
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)


@pytest.mark.slow
def test_route_uses_kv_events_of_engines(tmp_path: Path) -> None:
    """The events include blocks from before the start and from requests of other clients."""
    (first, at_first), (second, at_second) = _telling(), _telling()
    option = "--kv-events-config"
    with simulator(option, first) as one, simulator(option, second) as two:
        early, late = list(range(1000, 1064)), list(range(2000, 2064))
        compute(one, early)
        events = ("--events", f"{at_first},{at_second}")
        with routing(tmp_path, "--workers", f"{one.url},{two.url}", *events) as served:
            until("both", lambda: states(served) == ["ready", "ready"])
            until("the replay", lambda: overlaps(served, early) == [4, 0])
            compute(two, late)
            until("the news", lambda: overlaps(served, late) == [0, 4])
            for prompt in (late, late, early):
                served.client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)
            until("their ways", lambda: [r["load"]["served"] for r in rows(served)] == [1, 2])


def overlaps(served: Served, prompt: list[int]) -> list[int]:
    """Return the blocks that the router considers cached, by rank."""
    why = served.post("/v1/route", {"model": MODEL, "prompt": prompt}).json
    return [worker["overlap_blocks"] for worker in why["workers"]]


def test_route_reports_why_a_worker_is_excluded(tmp_path: Path, ranks: list[Rank]) -> None:
    with simulator(key="another") as foreign:
        urls = f"{ranks[0].url},{foreign.url}"
        with routing(tmp_path, "--workers", urls, f"model.name={MODEL}") as served:
            until("its reason", lambda: "route.api_key_file" in rows(served)[1]["detail"])
            assert states(served) == ["ready", "starting"]
            assert ask(served)


def test_ctrl_c_ends_endpoint_but_not_engines(tmp_path: Path) -> None:
    with simulator(key="") as rank, on_a_terminal(["route", "--workers", rank.url], tmp_path) as up:
        up.expect_exact(f"{MODEL} answers on", timeout=HANG_S)
        up.expect_exact("base URL: http")
        up.expect("curl [^\r\n]*")
        command = f"{up.after} -s"
        answer = json.loads(subprocess.check_output(["bash", "-c", command], timeout=HANG_S))
        assert answer["choices"][0]["message"]["content"]
        up.sendintr()
        up.expect_exact("ended: stopped")
        assert ends(up) == 130
        assert rank.process.poll() is None
    job = launch.find_job(Run(tmp_path / "runs" / "route").attempts()[-1])
    assert job
    until("nothing is left", lambda: job.state()[0] is launch.JobState.ended)
