"""Unusual bodies get the same answer from a prefill and a decode worker of real vLLM as from one.

The decode worker, asked directly, gives the correct answers; it caches no prefixes, so an answer
that used another prompt's KV blocks shows. All bodies are sent before the first test.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from hpc_dynamo.config import Batch, Config, Engine, Model, Route, Router, resolve_route
from hpc_dynamo.engines.http_paths import is_inference
from hpc_dynamo.head.membership.external import ExternalWorkers
from hpc_dynamo.head.workloads.batch import BatchWorkload
from hpc_dynamo.head.workloads.workload import HeadContext, model_routes
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Run, Secrets, new_token
from hpc_dynamo.topology import plan
from hpc_dynamo.wire import new_keys
from tests.integration.serving.routed import routing, rows
from tests.support.comparable import Answer, batch_answers, comparable
from tests.support.runs import until
from tests.support.unusual_bodies import CASES, MODEL, QUESTIONS, Case, completion
from tests.support.vllm import provisioned
from tests.support.vllm_serve import REQUEST_S, Served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

BATCH_S = 400.0  # on a busy machine
CONCURRENCY = 8  # decode steps of several requests cost little more than those of one

Ask = Callable[[Case], Answer]


def send(url: str, key: str, case: Case) -> Answer:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urlopen(Request(url + case.path, case.content, headers), timeout=REQUEST_S) as got:
            return comparable(got.status, got.read())
    except HTTPError as e:
        with e:
            return comparable(e.code, e.read())


def answers_of(url: str, key: str, cases: Mapping[Case, Case]) -> Ask:
    """Send the values of `cases` at the same time. Return the answers by key."""
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        sent = {case: pool.submit(send, url, key, body) for case, body in cases.items()}
    return lambda case: sent[case].result()


@pytest.fixture(scope="module")
def expected(served: Served) -> Ask:
    """The decode worker by itself."""
    direct = {case: case.direct for case in (*CASES, *QUESTIONS)}
    return answers_of(served.workers()["decode"], served.token, direct)


@pytest.fixture(scope="module")
def endpoint(served: Served) -> Ask:
    url = served.url.removesuffix("/v1")
    return answers_of(url, served.key, {case: case for case in CASES})


@pytest.fixture(scope="module")
def route(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """`hpc-dynamo route` in front of the same engines, without a tokenizer."""
    urls, folder = served.workers(), tmp_path_factory.mktemp("route")
    words = ("--prefill", urls["prefill"], "--decode", urls["decode"], f"model.name={MODEL}")
    key = served.token
    with routing(
        folder, *words, "router.conditional_disaggregation=false", engine_key=key
    ) as found:
        until("both engines", lambda: [row["state"] for row in rows(found)] == ["ready"] * 2)
        url = found.url.removesuffix("/v1")
        yield answers_of(url, found.key, {case: case for case in CASES})


@pytest.fixture(scope="module", params=["with tokenizer", "without tokenizer"])
def batch(
    request: pytest.FixtureRequest, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Answer]:
    """Answers of a batch of all cases on the same engines, by name."""
    folder, urls = tmp_path_factory.mktemp("batch"), served.workers()
    path = str(provisioned().model) if request.param == "with tokenizer" else ""
    lines = (case.batch_line for case in BATCHED)
    (folder / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = resolve_route(
        Config(
            name="bodies",
            input=str(folder / "cases.jsonl"),
            engine=Engine(name="vllm"),
            model=Model(path=path, name=MODEL),
            batch=Batch(concurrency=CONCURRENCY, max_retries=0, request_timeout_s=REQUEST_S),
            router=Router(conditional_disaggregation=False),
            route=Route(prefill=(urls["prefill"],), decode=(urls["decode"],)),
        )
    )
    outcome = asyncio.run(run_batch(config, folder / "run", served.token))
    assert outcome.summary is not None
    assert outcome.summary.itl.count > 0
    assert outcome.summary.kv_bytes > 0, "NIXL's byte counter did not move"
    return batch_answers(folder / "run")


async def run_batch(config: Config, folder: Path, key: str) -> Outcome:
    """The batch work of a head, on engines that run already."""
    run, (public, private) = Run(folder), new_keys()
    run.create(Secrets(token=new_token(), public=public, private=private))
    attempt = run.new_attempt(config, plan(config))
    async with (
        asyncio.timeout(BATCH_S),
        HttpClient.bearer(key) as http,
        asyncio.TaskGroup() as tasks,
    ):
        found = model_routes(config, http)
        members = ExternalWorkers(config, found[""].router, http, tasks)
        watch = tasks.create_task(members.watch())
        outcome = await BatchWorkload(HeadContext(attempt, config, found, members, http)).run()
        watch.cancel()
    return outcome


def same(answer: Answer, expected: Answer, case: Case) -> None:
    if case.status_only:
        answer, expected = (answer[0], None), (expected[0], None)
    assert answer == expected


every_case = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
BATCHED = [case for case in CASES if is_inference(case.path) and not case.streams]
BATCHED += QUESTIONS


@every_case
def test_serve_answers_equal_aggregated_worker(case: Case, endpoint: Ask, expected: Ask) -> None:
    same(endpoint(case), expected(case), case)


@every_case
def test_route_without_tokenizer_equals_aggregated_worker(
    case: Case, route: Ask, expected: Ask
) -> None:
    same(route(case), expected(case), case)


def test_single_prompt_requests_are_disaggregated(served: Served) -> None:
    def transfers() -> float:
        return served.metric("decode", "vllm:nixl_xfer_time_seconds_count")

    before = transfers()
    case = completion("of its own", "A prompt that no other case has")
    assert send(served.url.removesuffix("/v1"), served.key, case)[0] == 200
    until("a transfer", lambda: transfers() > before)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in BATCHED])
def test_batch_answers_equal_aggregated_worker(
    case: Case, batch: dict[str, Answer], expected: Ask
) -> None:
    same(batch[case.name], expected(case), case)
