"""Unusual bodies get the same answer from a prefill and a decode worker of real SGLang as from one.

`hpc-dynamo route` asks the two workers through proxies, which record the conversation. It must have
the structure of `conversation.jsonl.gz`, from which the simulator is checked as well
(tests/integration/simulator/test_sglang_conversation.py). To record it again, set
HPC_DYNAMO_RECORD_SGLANG=1.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.engines.http_paths import is_inference
from tests.integration.serving.routed import routing, rows
from tests.support.body_answers import Ask, answers_of, request_id, run_batch, same
from tests.support.comparable import Answer, batch_answers
from tests.support.recorded_engines import (
    Exchange,
    answer_shape,
    read_exchanges,
    recorder,
    write_exchanges,
)
from tests.support.runs import until
from tests.support.unusual_bodies import CASES, MODEL, QUESTIONS, Case
from tests.support.vllm import provisioned_sglang
from tests.support.vllm_serve import Served

pytestmark = pytest.mark.sglang

RECORDED = Path(__file__).with_name("conversation.jsonl.gz")


def deterministic(case: Case) -> Case:
    """Return the request without randomness: SGLang ignores a `seed` unless all its inference is
    deterministic."""
    return replace(case, body=case.body | {"top_k": 1}) if "seed" in case.body else case


ASKED = [deterministic(case) for case in CASES]
BATCHED = [case for case in ASKED if is_inference(case.path) and not case.streams]
BATCHED += QUESTIONS
every_case = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in ASKED])


@pytest.fixture(scope="module")
def expected(alone: Served) -> Ask:
    """One worker. It is asked through its endpoint, since some bodies would end it."""
    cases = {case: case for case in (*ASKED, *QUESTIONS)}
    return answers_of(alone.url.removesuffix("/v1"), alone.key, cases)


@pytest.fixture(scope="module")
def conversation() -> list[Exchange]:
    """Requests to the workers and their answers."""
    return []


@pytest.fixture(scope="module")
def route(
    served: Served, conversation: list[Exchange], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ask]:
    with ExitStack() as stack:
        workers = served.workers().items()
        urls = {r: stack.enter_context(recorder(url, r, conversation)).url for r, url in workers}
        words = ["engine=sglang", "--prefill", urls["prefill"], "--decode", urls["decode"]]
        words += [f"model.name={MODEL}", f"model.path={provisioned_sglang().model}"]
        folder = tmp_path_factory.mktemp("route")
        found = stack.enter_context(routing(folder, *words, engine_key=served.token))
        until("both engines", lambda: [row["state"] for row in rows(found)] == ["ready"] * 2)
        cases = {case: case for case in ASKED}
        yield answers_of(found.url.removesuffix("/v1"), found.key, cases)


@pytest.fixture(scope="module")
def batch(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """Answers of a batch of all cases on the same engines, by name."""
    folder, path = tmp_path_factory.mktemp("batch"), str(provisioned_sglang().model)
    outcome = run_batch("sglang", path, served, folder, BATCHED)
    assert outcome.summary is not None
    assert outcome.summary.kv_bytes > 0, "the counter of transferred bytes did not move"
    return batch_answers(folder / "run")


@every_case
def test_route_answers_equal_aggregated_worker(case: Case, route: Ask, expected: Ask) -> None:
    same(route(case), expected(case), case)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in BATCHED])
def test_batch_answers_equal_aggregated_worker(
    case: Case, batch: dict[str, Answer], expected: Ask
) -> None:
    """A batch keeps SGLang's own error, to which the endpoint gives OpenAI's form."""
    answer = expected(case)
    same(batch[case.name], answer, replace(case, status_only=answer[0] != 200))


def shapes(exchanges: list[Exchange], case: Case, role: str) -> Any:
    """Return the kinds of answers to one request."""
    names = (request_id(case), role)
    found = [answer_shape(each) for each in exchanges if (each.request_id, each.role) == names]
    return [shape for i, shape in enumerate(found) if shape not in found[:i]]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_conversation_is_that_of_record(
    role: str, route: Ask, conversation: list[Exchange]
) -> None:
    if os.environ.get("HPC_DYNAMO_RECORD_SGLANG"):
        write_exchanges(RECORDED, [each for each in conversation if each.request_id])
    recorded = read_exchanges(RECORDED)
    for case in CASES:
        # One of two workers that refuse a request may be cancelled before it answers.
        if found := shapes(conversation, case, role):
            assert found == shapes(recorded, case, role), case.name
