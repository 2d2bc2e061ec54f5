"""Requests of a batch, with a dispatcher that records them."""

import json
from typing import Any

import pytest

from hpc_dynamo.batch.input_file import read_input
from hpc_dynamo.batch.ledger import Ledger
from hpc_dynamo.batch.runner import BatchRunner
from hpc_dynamo.config import Config
from hpc_dynamo.dispatch import Dispatcher, EngineRequest, ResponseSink, UnhandledException
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.run import Run

CODE = {"callable": "80049503"}


class RecordingDispatcher(Dispatcher):
    """Records requests and fails them, as an engine that refuses them."""

    def __init__(self, *errors: RequestFailed) -> None:
        self.bodies = list[dict[str, Any]]()
        self._errors = iter(errors)

    async def run(
        self, request: EngineRequest, sink: ResponseSink, *, max_attempts: int | None = None
    ) -> None:
        self.bodies.append(json.loads(request.content))
        raise next(self._errors, RequestFailed("enough", status=400))


async def run_one(
    run: Run, body: dict[str, Any], *errors: RequestFailed
) -> tuple[list[dict[str, Any]], str]:
    """Return the bodies that were sent for one request, and the error in its result."""
    file = run.path / "in.jsonl"
    file.write_text(json.dumps({"prompt": "a", **body}) + "\n")
    requests, ledger, dispatcher = read_input(file), Ledger(run, 1), RecordingDispatcher(*errors)
    runner = BatchRunner(
        Config(), requests, requests.entries, ledger, dispatcher, lambda rank: None,
        max_context_tokens=lambda: 100,
    )  # fmt: skip
    assert await runner.run()
    (line,) = run.attempt_results(1).read_bytes().splitlines()
    return dispatcher.bodies, json.loads(line)["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"vllm_xargs": {"kv_transfer_params": ""}},
        {"vllm_xargs": {"a": [{"bootstrap_room": 1}]}},
        {"vllm_xargs": {"session_params": CODE}},
        {"custom_logit_processor": "80049503"},
        {"max_tokens": 101},
    ],
)
async def test_harmful_request_of_a_batch_is_not_sent(run: Run, body: dict[str, Any]) -> None:
    bodies, error = await run_one(run, body)
    assert bodies == []
    assert next(iter(body)) in error


async def test_fields_that_address_processes_are_removed(run: Run) -> None:
    reserved = {
        "kv_transfer_params": {"x": 1},
        "bootstrap_room": 1,
        "rid": "a",
        "routed_dp_rank": 1,
    }
    ((sent,), _) = await run_one(run, reserved | {"vllm_xargs": {"a": 1}, "cache_salt": "s"})
    assert sent.keys() == {"prompt", "model", "vllm_xargs", "cache_salt"}


async def test_request_that_the_engine_cannot_read_is_sent_twice(run: Run) -> None:
    exceptions = [UnhandledException(0, "answered 500", b"", "no field 'x'") for _ in range(9)]
    bodies, error = await run_one(run, {}, *exceptions)
    assert len(bodies) == 2
    assert error == "the engine cannot read this request: no field 'x'"
