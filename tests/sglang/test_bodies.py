"""Unusual bodies get the same answer from a prefill and a decode worker of real SGLang as from one.

`hpc-dynamo route` asks the same two workers through proxies, which record the conversation. Each
must be structured as those of `conversation.jsonl.gz`, from which the simulator's answers are
checked too (tests/integration/simulator/test_sglang_conversation.py).
"""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.integration.serving.routed import routing, rows
from tests.support.body_answers import Ask, answers_of, same
from tests.support.recorded_engines import Exchange, recorder
from tests.support.runs import until
from tests.support.unusual_bodies import CASES, MODEL, Case
from tests.support.vllm_serve import Served

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def expected(alone: Served) -> Ask:
    """One worker, asked directly."""
    return answers_of(
        alone.workers()["aggregated"], alone.token, {case: case.direct for case in CASES}
    )


@pytest.fixture(scope="module")
def endpoint(served: Served) -> Ask:
    return answers_of(served.url.removesuffix("/v1"), served.key, {case: case for case in CASES})


@pytest.fixture(scope="module")
def conversation() -> list[Exchange]:
    """Requests to the workers of `route` and their answers."""
    return []


@pytest.fixture(scope="module")
def route(
    served: Served, conversation: list[Exchange], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ask]:
    """`hpc-dynamo route` in front of the same engines, without a tokenizer."""
    with ExitStack() as stack:
        proxies = {
            role: stack.enter_context(recorder(url, role, conversation))
            for role, url in served.workers().items()
        }
        words = (
            "engine=sglang",
            "--prefill",
            proxies["prefill"].url,
            "--decode",
            proxies["decode"].url,
        )
        folder, name = tmp_path_factory.mktemp("route"), f"model.name={MODEL}"
        found = stack.enter_context(routing(folder, *words, name, engine_key=served.token))
        until("both engines", lambda: [row["state"] for row in rows(found)] == ["ready"] * 2)
        conversation.clear()
        yield answers_of(found.url.removesuffix("/v1"), found.key, {case: case for case in CASES})


every_case = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])


@every_case
def test_serve_answers_equal_aggregated_worker(case: Case, endpoint: Ask, expected: Ask) -> None:
    same(endpoint(case), expected(case), case)


@every_case
def test_route_without_tokenizer_equals_aggregated_worker(
    case: Case, route: Ask, expected: Ask
) -> None:
    same(route(case), expected(case), case)
