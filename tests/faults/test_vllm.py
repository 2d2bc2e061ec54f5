"""Real vLLM: its processes are killed or stopped in the middle of streams."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Semaphore
from typing import Any

import pytest

from tests.faults.test_hangs import hangs
from tests.integration.serving.served import Served
from tests.support import tiny_models
from tests.support.batches import background_batch
from tests.support.cut_streams import assert_unbroken, text_of
from tests.support.fault_rows import FaultRecorder
from tests.support.faults import stopped
from tests.support.runs import (
    latest,
    until,
)
from tests.support.vllm import provisioned
from tests.support.vllm_serve import (
    MODEL,
    POLL_S,
    READY_S,
    SMALL_ENGINE,
    engine_pid,
    process_of,
    serving,
)

pytestmark = [pytest.mark.vllm, pytest.mark.slow_fault, pytest.mark.timeout(1200)]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SERVER, CORE, SECOND_OF_TWO = "", "VLLM::EngineCore", "VLLM::Worker_TP1"
MOVED = "its requests move after `engine.hang_timeout_s`, here 20 s"
CONTINUED = "the streams continue, same greedy text"
WORDS = ("engine.max_restarts=20", "cluster.heartbeat_timeout_s=60")

Json = dict[str, Any]
Case = tuple[str, Json]

GREEDY: Json = {"model": MODEL, "temperature": 0, "max_tokens": 60, "ignore_eos": True}
TALK: Json = {"messages": [{"role": "user", "content": "Tell a story about the sea."}]}
COUNT: Json = {"prompt": "One, two, three, four,"}
USAGE: Json = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def disaggregated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One prefill worker and two decode workers."""
    folder = tmp_path_factory.mktemp("pd")
    words = ("topology=disaggregated", "topology.decode.workers=2")
    more = ("router.conditional_disaggregation=false", "engine.args.max-model-len=1024")
    with serving(provisioned(), folder, *words, *more, *WORDS):
        served = Served(latest(folder / "runs" / "v"))
        all_ready(served)
        yield served


def all_ready(served: Served) -> None:
    """Wait for all workers; `/ready` answers 200 if one of each role is ready."""

    def ready() -> bool:
        rows = served.ask("GET", "/v1/workers").json["data"]
        return all(row["state"] == "ready" for row in rows)

    until("all workers", ready, READY_S, POLL_S)


def cases(served: Served) -> list[Case]:
    """Return requests of all kinds that continue, with stop strings from their own texts."""
    chat, counted = GREEDY | TALK, GREEDY | COUNT
    text = text_of(served.post(CHAT, chat).json)
    said = text_of(served.post(COMPLETIONS, counted).json)
    return [
        (CHAT, chat),
        (CHAT, chat | {"stop": text[120:130]}),
        (CHAT, chat | {"logprobs": True, "top_logprobs": 2, "max_tokens": 40}),
        (COMPLETIONS, counted),
        (COMPLETIONS, counted | {"stop": [said[90:93], "never"]}),
        (COMPLETIONS, counted | {"logprobs": 2, "max_tokens": 40}),
    ]


@contextmanager
def lines_of(served: Served, path: str, body: Json) -> Iterator[Iterator[bytes]]:
    """Send a request; yield the lines of its stream that are not empty."""
    with closing(served.connect()) as connection:
        headers = {"Authorization": f"Bearer {served.key}"}
        connection.request("POST", path, json.dumps(body | USAGE), headers)
        response = connection.getresponse()
        assert response.status == 200
        yield (line for line in response if line.strip())


def fail_in_mid_stream(
    served: Served,
    asked: list[Case],
    begun_lines: int,
    fail: Callable[[str], None],
    loads: Callable[[Served], dict[str, float]] = Served.loads,
) -> list[list[Json]]:
    """Send requests at once. Call `fail` with the decode worker that has most of them, by `loads`,
    once each has some lines."""
    begun = Semaphore(0)

    def stream(case: Case) -> list[Json]:
        with lines_of(served, *case) as lines:
            seen = [next(lines) for _ in range(begun_lines)]
            begun.release()
            data = [line.removeprefix(b"data: ").strip() for line in (*seen, *lines)]
        assert data.pop() == b"[DONE]"
        return [json.loads(each) for each in data]

    with ThreadPoolExecutor(len(asked)) as pool:
        streams = [pool.submit(stream, case) for case in asked]
        for _ in asked:
            assert begun.acquire(timeout=300)
        found = loads(served)
        url = max((row["url"] for row in served.workers()["decode"]), key=lambda url: found[url])
        assert found[url], "all streams have ended"
        fail(url)
        return [each.result() for each in streams]


def migrations(served: Served) -> dict[str, float]:
    name = "hpc_dynamo_stream_migrations_total"
    rows = served.metrics_now().items()
    return {key.split('"')[1]: value for key, value in rows if key.startswith(name)}


@pytest.mark.parametrize(
    ("what", "title", "sign"),
    [
        ("SIGKILL of the API server", SERVER, signal.SIGKILL),
        ("SIGKILL of the engine core", CORE, signal.SIGKILL),
        ("SIGSTOP of the engine core", CORE, signal.SIGSTOP),
    ],
)
def test_streams_survive_their_decode_worker(
    disaggregated: Served, fault: FaultRecorder, what: str, title: str, sign: int
) -> None:
    served = disaggregated
    all_ready(served)
    asked, before = cases(served), migrations(served)
    with ThreadPoolExecutor(len(asked)) as pool:
        whole = list(pool.map(lambda case: served.post(*case).json, asked))
    row = fault(f"vLLM, one of two decode workers with open streams: {what}", CONTINUED)

    def fail(url: str) -> None:
        row.injected()
        os.kill(process_of(url, title) if title else engine_pid(url), sign)

    streams = fail_in_mid_stream(served, asked, fault.chance.randrange(4, 16), fail)
    row.recovered()
    row.requests(len(asked))
    for chunks, expected in zip(streams, whole, strict=True):
        assert_unbroken(chunks, expected, log_probabilities=False)
        assert tokens(chunks) == tokens([expected])
    after = migrations(served)
    assert after.pop("completed") > before.pop("completed", 0)
    assert after == before, "no stream was lost"


def tokens(chunks: list[Any]) -> list[str]:
    """Return the tokens whose log-probabilities were sent."""
    found = [c.get("logprobs") or {} for chunk in chunks for c in chunk["choices"]]
    chats = [row["token"] for each in found for row in each.get("content") or ()]
    return chats + [token for each in found for token in each.get("tokens") or ()]


def test_stopped_process_of_tensor_parallel_worker(tmp_path: Path, fault: FaultRecorder) -> None:
    """Its worker is restarted as a whole; its requests move to the other one."""
    vllm = provisioned()
    vllm = replace(vllm, model=tiny_models.llama(tmp_path / "tiny", vllm.model))
    words = ("topology=aggregated", "topology.aggregated.workers=2", "router=round_robin")
    wide = ("topology.aggregated.tensor_parallel=2", "engine.args.distributed-executor-backend=mp")
    with serving(vllm, tmp_path, *words, *wide, *WORDS, "engine.args.max-model-len=512"):
        served = Served(latest(tmp_path / "runs" / "v"))
        all_ready(served)
        body = GREEDY | COUNT | {"max_tokens": 8}
        (text,) = {text_of(served.post(COMPLETIONS, body).json) for _ in range(2)}
        first = next(row for row in served.workers()["aggregated"] if row["rank"] == 0)
        row = fault("vLLM, one of two workers: SIGSTOP of a tensor-parallel process", MOVED)
        with stopped(process_of(first["url"], SECOND_OF_TWO)), ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda _: served.post(COMPLETIONS, body).json, range(6)))
            assert {text_of(each) for each in found} == {text}
            row.requests(len(found))
            until("it is counted", lambda: hangs(served)["0"] == 1)
        all_ready(served)
        row.recovered()
        assert "hangs: no progress for" in served.attempt.agent_log(0).read_text()
        assert hangs(served)["1"] == 0


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_batch_survives_its_only_worker_of_a_role(
    tmp_path: Path, fault: FaultRecorder, role: str
) -> None:
    vllm = provisioned()
    model = tiny_models.llama(tmp_path / "tiny", vllm.model)
    words = ("engine=vllm-cpu", "cluster.launcher=local", "topology=disaggregated", *SMALL_ENGINE)
    own = (f"engine.python={vllm.python}", f"model.path={model}")
    with background_batch(tmp_path, 200, *words, *own, timeout_s=900) as batch:
        batch.wait_for_results(fault.chance.randrange(2, 61), READY_S)
        row = fault(f"vLLM, batch of 200: SIGKILL of the only {role} worker", "nothing is lost")
        os.kill(engine_of(batch.run, role), signal.SIGKILL)
        batch.succeed()
    row.recovered()
    row.requests(200)
    outcome = latest(batch.run).outcome()
    assert outcome is not None
    assert outcome.summary is not None
    assert outcome.summary.kv_bytes > 0, "NIXL's byte counter did not move"


def engine_of(run: Path, role: str) -> int:
    """Return the process of the worker with this role, by the log of its agent."""
    log = latest(run).agent_log(0).read_text()
    (port,) = re.findall(rf"\({role}\) on .* starts: .* --port (\d+)", log)
    return engine_pid(f"http://127.0.0.1:{port}")
