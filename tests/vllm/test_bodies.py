"""Unusual bodies get the same answer from a prefill and a decode worker of real vLLM as from one.

One pair of engines serves the whole module. The decode worker, asked directly, gives the correct
answers; it caches no prefixes, so an answer that used another prompt's KV blocks shows.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from functools import cache
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
from hpc_dynamo.run import Run, Secrets, new_token
from hpc_dynamo.topology import plan
from hpc_dynamo.wire import new_keys
from tests.integration.serving.routed import routing, rows
from tests.support.comparable import Answer, batch_answers, comparable
from tests.support.runs import until
from tests.support.unusual_bodies import CASES, CONTEXT, MODEL, Case, completion
from tests.support.vllm import provisioned
from tests.vllm.test_serve import Served, serving

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ANSWER_S, BATCH_S = 200.0, 400.0  # on a busy machine

Ask = Callable[[Case], Answer]


def asking(url: str, key: str) -> Ask:
    """Sends cases to an endpoint, each once."""

    @cache
    def ask(case: Case) -> Answer:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            with urlopen(Request(url + case.path, case.content, headers), timeout=ANSWER_S) as got:
                return comparable(got.status, got.read())
        except HTTPError as e:
            with e:
                return comparable(e.code, e.read())

    return ask


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = (
        "topology=disaggregated",
        "router.conditional_disaggregation=false",
        f"engine.args.max-model-len={CONTEXT}",
        "engine.decode.args.enable-prefix-caching=false",
        "engine.args.enable-auto-tool-choice=true",
        "engine.args.tool-call-parser=hermes",
    )
    with serving(provisioned(), tmp_path_factory.mktemp("bodies"), *words) as found:
        yield found


@pytest.fixture(scope="module")
def expected(served: Served) -> Ask:
    """The decode worker by itself."""
    ask = asking(served.workers()["decode"], served.token)
    return cache(lambda case: ask(case.direct))


@pytest.fixture(scope="module")
def endpoint(served: Served) -> Ask:
    return asking(served.url.removesuffix("/v1"), served.key)


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
        yield asking(found.url.removesuffix("/v1"), found.key)


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
            batch=Batch(concurrency=4, max_retries=0, request_timeout_s=ANSWER_S),
            router=Router(conditional_disaggregation=False),
            route=Route(prefill=(urls["prefill"],), decode=(urls["decode"],)),
        )
    )
    asyncio.run(run_batch(config, folder / "run", served.token))
    return batch_answers(folder / "run")


async def run_batch(config: Config, folder: Path, key: str) -> None:
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
        await BatchWorkload(HeadContext(attempt, config, found, members, http)).run()
        watch.cancel()


def same(answer: Answer, expected: Answer, case: Case) -> None:
    if case.status_only:
        answer, expected = (answer[0], None), (expected[0], None)
    assert answer == expected


every_case = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
BATCHED = [case for case in CASES if is_inference(case.path) and not case.streams]


@every_case
def test_serve_answers_equal_aggregated_worker(case: Case, endpoint: Ask, expected: Ask) -> None:
    same(endpoint(case), expected(case), case)


@every_case
def test_route_without_tokenizer_equals_aggregated_worker(
    case: Case, route: Ask, expected: Ask
) -> None:
    same(route(case), expected(case), case)


def test_single_prompt_requests_are_disaggregated(served: Served, endpoint: Ask) -> None:
    def transfers() -> float:
        return served.metric("decode", "vllm:nixl_xfer_time_seconds_count")

    before = transfers()
    assert endpoint(completion("of its own", "A prompt that no other case has"))[0] == 200
    until("a transfer", lambda: transfers() > before)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in BATCHED])
def test_batch_answers_equal_aggregated_worker(
    case: Case, batch: dict[str, Answer], expected: Ask
) -> None:
    same(batch[case.name], expected(case), case)
