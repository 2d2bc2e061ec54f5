"""Answers of real engines to the bodies of `unusual_bodies`, through an endpoint and in a batch."""

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from hpc_dynamo.config import Batch, Config, Engine, Model, Route, Router, resolve_route
from hpc_dynamo.head.membership.external import ExternalWorkers
from hpc_dynamo.head.workloads.batch import BatchWorkload
from hpc_dynamo.head.workloads.workload import HeadContext, model_routes
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Run, Secrets, new_token
from hpc_dynamo.topology import plan
from hpc_dynamo.wire import new_keys
from tests.support.comparable import Answer, comparable
from tests.support.unusual_bodies import MODEL, Case
from tests.support.vllm_serve import REQUEST_S, Served

BATCH_S = 400.0  # on a busy machine
CONCURRENCY = 8  # decode steps of several requests cost little more than those of one

Ask = Callable[[Case], Answer]


def request_id(case: Case) -> str:
    """Return the name of a case as an id, which reaches the engines."""
    return re.sub(r"\W+", "-", case.name)


def send(url: str, key: str, case: Case) -> Answer:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    headers["X-Request-Id"] = request_id(case)
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


def same(answer: Answer, expected: Answer, case: Case) -> None:
    if case.status_only:
        answer, expected = (answer[0], None), (expected[0], None)
    assert answer == expected


def run_batch(
    engine: str, model_path: str, served: Served, folder: Path, cases: Iterable[Case]
) -> Outcome:
    """Run a batch of all cases in `folder`/run on the engines of an endpoint. The files of the
    model are optional."""
    urls, lines = served.workers(), (case.batch_line for case in cases)
    (folder / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = resolve_route(
        Config(
            name="bodies",
            input=str(folder / "cases.jsonl"),
            engine=Engine(name=engine),
            model=Model(path=model_path, name=MODEL),
            batch=Batch(concurrency=CONCURRENCY, max_retries=0, request_timeout_s=REQUEST_S),
            router=Router(conditional_disaggregation=False),
            route=Route(prefill=(urls["prefill"],), decode=(urls["decode"],)),
        )
    )
    return asyncio.run(_run_batch(config, folder / "run", served.token))


async def _run_batch(config: Config, folder: Path, key: str) -> Outcome:
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
