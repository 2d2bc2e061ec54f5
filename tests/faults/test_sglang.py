"""Real SGLang: workers are killed with requests on them; a small prefix cache evicts blocks."""

import http.client
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.faults.test_vllm import (
    COMPLETIONS,
    CONTINUED,
    COUNT,
    GREEDY,
    Json,
    all_ready,
    cases,
    fail_in_mid_stream,
    migrations,
    tokens,
)
from tests.integration.serving.served import Served
from tests.support.cut_streams import assert_unbroken, text_of
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import HANG_S, latest, until
from tests.support.vllm import provisioned_sglang
from tests.support.vllm_serve import MODEL, POLL_S, engine_pid, process_of, serving

pytestmark = [pytest.mark.sglang, pytest.mark.slow_fault, pytest.mark.timeout(1800)]

RESPONSES = "/v1/responses"
SERVER, SCHEDULER = "", "sglang::scheduler"
HELD = ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")  # in /v1/loads
BLOCK, CACHE = 16, 4096  # tokens
ANSWER_S = 900.0  # with a restart, on a busy machine
SEA = "Ships from the north carry salt, wood and iron to the towns of the coast. "
WORDS = (
    *("engine.max_restarts=20", "cluster.heartbeat_timeout_s=60", "serve.queue_timeout_s=600"),
    # SGLang itself does not notice during a test that a client has left.
    "engine.env.SGLANG_REQUEST_STATE_WAIT_TIMEOUT=600",
)


@pytest.fixture(scope="module")
def disaggregated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One prefill worker and two decode workers."""
    folder = tmp_path_factory.mktemp("sglang")
    words = ("topology=disaggregated", "topology.decode.workers=2", *WORDS)
    small = f"engine.args.max-total-tokens={CACHE}"
    with serving(provisioned_sglang(), folder, *words, small):
        served = Served(latest(folder / "runs" / "v"))
        all_ready(served)
        yield served


def complete(served: Served, body: Json) -> tuple[int, Any]:
    """Send a completion; return status and answer, also after a restart of its worker."""
    with closing(
        http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=ANSWER_S)
    ) as connection:
        headers = {"Authorization": f"Bearer {served.key}"}
        connection.request("POST", COMPLETIONS, json.dumps({"model": MODEL, **body}), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def overlap(served: Served, prompt: str) -> int:
    """Return the blocks of a prompt that the router expects on the prefill worker."""
    found = served.post("/v1/route", {"prompt": prompt}).json
    rows = [worker for worker in found["workers"] if worker["role"] == "prefill"]
    return int(rows[0]["overlap_blocks"])


def held(served: Served) -> dict[str, float]:
    """Return the requests and tokens of KV cache that each engine holds now, by its URL.

    The gauges of /metrics are only set every 40 steps.
    """
    found, token = dict[str, float](), served.attempt.run.secrets().token
    for worker in (row for rows in served.workers().values() for row in rows):
        address = urlsplit(worker["url"]).netloc
        with closing(http.client.HTTPConnection(address, timeout=HANG_S)) as engine:
            engine.request("GET", "/v1/loads", headers={"Authorization": f"Bearer {token}"})
            (load,) = json.loads(engine.getresponse().read())["loads"]
            found[worker["url"]] = sum(int(load[name]) for name in HELD)
    return found


def holds(served: Served, role: str) -> float:
    """Return the same for all workers of a role."""
    found = held(served)
    return sum(found[row["url"]] for row in served.workers()[role])


def until_idle(served: Served) -> None:
    until("idle workers", lambda: not any(held(served).values()), poll_s=POLL_S)


@pytest.mark.parametrize("kind", ["whole", "stream", "response"])
def test_requests_of_lost_client_are_aborted_on_both_workers(
    disaggregated: Served, fault: FaultRecorder, kind: str
) -> None:
    """The client leaves while the prefill worker computes, or in the middle of its stream."""
    served, whole = disaggregated, kind == "whole"
    what = "leaves while its prompt is computed" if whole else f"of a {kind} leaves"
    row = fault(f"SGLang, the client {what}", "both workers drop the request at once")
    until_idle(served)
    prompt = f"{kind} " + SEA * (200 if whole else 1)
    path, body = COMPLETIONS, {"prompt": prompt, "max_tokens": 500, "ignore_eos": True}
    if kind == "response":
        path, body = RESPONSES, {"input": prompt, "max_output_tokens": 500}
    with closing(served.connect()) as client:
        headers = {"Authorization": f"Bearer {served.key}"}
        client.request(
            "POST", path, json.dumps({**body, "model": MODEL, "stream": not whole}), headers
        )
        if not whole:
            assert client.getresponse().readline().startswith((b"data:", b"event:"))
        until("the request", lambda: holds(served, "prefill" if whole else "decode"))
    row.injected()
    row.requests(1)
    until_idle(served)
    row.recovered()


def test_evicted_blocks_are_no_longer_expected(disaggregated: Served) -> None:
    served = disaggregated
    body: Json = {"prompt": SEA * 30, "max_tokens": 1}
    size = complete(served, body)[1]["usage"]["prompt_tokens"]
    until("KV events", lambda: overlap(served, SEA * 30) == size // BLOCK)
    for number in range(CACHE // size + 1):
        assert complete(served, body | {"prompt": f"{number} {SEA * 30}"})[0] == 200
    until("the eviction", lambda: overlap(served, SEA * 30) < size // BLOCK)
    before = served.engines()["prefill"].get("sglang:cached_tokens_total", 0.0)
    expected = overlap(served, SEA * 30)
    assert complete(served, body)[0] == 200
    hits = served.engines()["prefill"].get("sglang:cached_tokens_total", 0.0) - before
    assert abs(hits - expected * BLOCK) <= BLOCK, "the router expects what SGLang has"


@pytest.mark.parametrize(
    ("what", "title"),
    [("SIGKILL of the server", SERVER), ("SIGKILL of the scheduler", SCHEDULER)],
)
def test_streams_survive_their_decode_worker(
    disaggregated: Served, fault: FaultRecorder, what: str, title: str
) -> None:
    served = disaggregated
    all_ready(served)
    asked, before = cases(served), migrations(served)
    whole = [served.post(*case).json for case in asked]
    row = fault(f"SGLang, one of two decode workers with open streams: {what}", CONTINUED)

    def fail(url: str) -> None:
        row.injected()
        os.kill(process_of(url, title) if title else engine_pid(url), signal.SIGKILL)

    streams = fail_in_mid_stream(served, asked, fault.chance.randrange(4, 16), fail, held)
    row.recovered()
    row.requests(len(asked))
    for chunks, expected in zip(streams, whole, strict=True):
        assert_unbroken(chunks, expected, log_probabilities=False)
        assert tokens(chunks) == tokens([expected])
    after = migrations(served)
    assert after.pop("completed") > before.pop("completed", 0)
    assert after == before, "no stream was lost"


def test_requests_wait_for_restart_of_the_only_prefill_worker(
    disaggregated: Served, fault: FaultRecorder
) -> None:
    served = disaggregated
    all_ready(served)
    body = GREEDY | COUNT | {"max_tokens": 8}
    expected = text_of(complete(served, body)[1])
    row = fault("SGLang, SIGKILL of the only prefill worker", "restarted; nothing is lost")
    (prefill,) = served.workers()["prefill"]
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(complete, served, {"prompt": SEA * 200, "max_tokens": 2})
        until("it computes", lambda: holds(served, "prefill"), poll_s=POLL_S)
        row.injected()
        os.kill(engine_pid(prefill["url"]), signal.SIGKILL)
        short = pool.submit(complete, served, body)
        assert long.result()[0] == 200, long.result()
        status, answer = short.result()
    assert (status, text_of(answer)) == (200, expected)
    row.recovered()
    row.requests(2)
    until_idle(served)
