"""Unusual bodies get the same answer from a prefill and a decode worker of real vLLM as from one.

The decode worker, asked directly, gives the correct answers; it caches no prefixes, so an answer
that used another prompt's KV blocks shows. All bodies are sent before the first test.
"""

from collections.abc import Iterator

import pytest

from hpc_dynamo.engines.http_paths import is_inference
from tests.integration.serving.routed import routing, rows
from tests.support.body_answers import Ask, answers_of, run_batch, same, send
from tests.support.comparable import Answer, batch_answers
from tests.support.runs import until
from tests.support.unusual_bodies import CASES, MODEL, QUESTIONS, Case, completion
from tests.support.vllm import provisioned
from tests.support.vllm_serve import Served

pytestmark = pytest.mark.vllm


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
    folder = tmp_path_factory.mktemp("batch")
    path = str(provisioned().model) if request.param == "with tokenizer" else ""
    outcome = run_batch("vllm", path, served, folder, BATCHED)
    assert outcome.summary is not None
    assert outcome.summary.itl.count > 0
    assert outcome.summary.kv_bytes > 0, "NIXL's byte counter did not move"
    return batch_answers(folder / "run")


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
