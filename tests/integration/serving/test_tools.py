"""Tool calls through the endpoint, with engines that report the tools of each request."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration.serving.routed import routing, rows
from tests.integration.serving.served import Served
from tests.support.paths_engine import MODEL, started
from tests.support.runs import until

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("report", "history")
]
NAMED = {"type": "function", "function": {"name": "report"}}
MESSAGES: list[Any] = [{"role": "user", "content": "What will the weather be?"}]


@pytest.fixture(scope="module", params=["aggregated", "disaggregated"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, str | None]]:
    """A route to two scripted engines, and the name of the one that prefills."""
    split = request.param == "disaggregated"
    with ExitStack() as stack:
        one, two = (stack.enter_context(started(name)) for name in ("one", "two"))
        workers = ("--prefill", one, "--decode", two) if split else ("--workers", f"{one},{two}")
        run = routing(tmp_path_factory.mktemp("tools"), *workers, f"model.name={MODEL}")
        served = stack.enter_context(run)
        until("both", lambda: [row["state"] for row in rows(served)] == ["ready", "ready"])
        yield served, "one" if split else None


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
def test_tools_reach_the_engine_and_its_call_reaches_the_client(
    served: tuple[Served, str | None], choice: Any
) -> None:
    run, prefilled_by = served
    ask: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS}
    ask["tool_choice"] = choice
    complete = run.client.chat.completions.create(**ask).choices[0]
    with run.client.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion().choices[0]
    for answer in (complete, streamed):
        (call,) = answer.message.tool_calls or []
        assert call.type == "function"
        assert call.function.name == "report"
        expected = {"tools": TOOLS, "tool_choice": choice, "last": "user"}
        expected["prefilled_by"] = prefilled_by
        assert json.loads(call.function.arguments) == expected
        assert answer.finish_reason == "tool_calls"


def test_logprobs_of_completions_reach_the_client(served: tuple[Served, str | None]) -> None:
    run, _ = served
    choice = run.client.completions.create(model=MODEL, prompt="x", logprobs=1).choices[0]
    assert choice.logprobs
    assert choice.logprobs.tokens == ["word"]
    assert choice.logprobs.token_logprobs == [-0.5]


def test_result_of_a_tool_goes_back_to_the_engine(served: tuple[Served, str | None]) -> None:
    run, _ = served
    first = run.client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=TOOLS)
    message = first.choices[0].message
    assert message.tool_calls
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    talk = [*MESSAGES, message.model_dump(exclude_none=True), result]
    second = run.client.chat.completions.create(model=MODEL, messages=talk, tools=TOOLS)
    (call,) = second.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments)["last"] == "tool"
