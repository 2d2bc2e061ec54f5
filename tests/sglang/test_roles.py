"""Role changes of real SGLang workers: by a request over mooncake, by a restart over NIXL.

Mooncake is no package of the demo. HPC_DYNAMO_TEST_MOONCAKE names a folder that has it, from
`pip install --no-deps --target FOLDER mooncake-transfer-engine-non-cuda`.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.config import Role
from tests.integration.serving.served import Served
from tests.support.load import Load, flips
from tests.support.runs import latest, until
from tests.support.vllm import provisioned_sglang
from tests.support.vllm_serve import MODEL, POLL_S, READY_S, engine_pid, serving

pytestmark = [pytest.mark.sglang, pytest.mark.slow_fault, pytest.mark.timeout(1800)]

CHANGE_S = 200.0  # on a quiet machine
PLANNED = (
    *("topology=disaggregated", "topology.decode.workers=2", "planner.mode=load"),
    *("planner.interval_s=1", "planner.stabilization_intervals=1"),
    *("planner.prefill_wait_threshold_s=0.2", "planner.kv_usage_high=0.5"),
    *("planner.kv_usage_low=0.05", "engine.args.enable-pd-role-switch=true"),
)
FOLDER = os.environ.get("HPC_DYNAMO_TEST_MOONCAKE", "")
MOONCAKE = (
    "engine.args.disaggregation-transfer-backend=mooncake",
    "engine.env.MOONCAKE_PROTOCOL=tcp",
    f"engine.env.PYTHONPATH={FOLDER}",
)
RESTARTED = "worker %d could not change to prefill while it runs; restarting its engine"
ASKED: Any = {
    "model": MODEL,
    "prompt": "The sea is wide and the ships on it are small. " * 8,
    "max_tokens": 12,
    "temperature": 0,
}


def running(served: Served) -> dict[str, int]:
    """Return the process ids of the ready engines by URL."""
    rows = [row for rows in served.workers().values() for row in rows]
    return {row["url"]: engine_pid(row["url"]) for row in rows}


def ready(served: Served) -> None:
    until("all workers", lambda: served.ask("GET", "/ready").status == 200, READY_S, POLL_S)


def answer(served: Served) -> str:
    ready(served)
    return str(served.client.with_options(timeout=600).completions.create(**ASKED).choices[0].text)


def load(served: Served, prompt_words: int, max_tokens: int) -> Load:
    return Load(served.url, served.key, MODEL, prompt_words, max_tokens)


@pytest.mark.skipif(not FOLDER, reason="HPC_DYNAMO_TEST_MOONCAKE is not set")
async def test_workers_change_their_role_while_they_run(tmp_path: Path) -> None:
    with serving(provisioned_sglang(), tmp_path, *PLANNED, *MOONCAKE):
        served = Served(latest(tmp_path / "runs" / "v"))
        expected = answer(served)
        before = running(served)
        for role, words, tokens, clients in ((Role.prefill, 400, 1, 6), (Role.decode, 3, 60, 16)):
            clients_load = load(served, words, tokens)
            done = lambda role=role: flips(served.attempt, role)  # noqa: E731
            await clients_load.run_until(done, clients, CHANGE_S)
            assert set(clients_load.pieces) == {tokens}
            assert answer(served) == expected, f"after a change to {role}"
        assert running(served) == before
        assert "restarting its engine" not in served.attempt.agent_log(0).read_text()


async def test_workers_with_nixl_are_restarted(tmp_path: Path) -> None:
    with serving(provisioned_sglang(), tmp_path, *PLANNED):
        served = Served(latest(tmp_path / "runs" / "v"))
        expected = answer(served)
        prompts = load(served, 400, 1)
        await prompts.run_until(lambda: flips(served.attempt, Role.prefill), 6, CHANGE_S)
        assert set(prompts.pieces) == {1}
        assert answer(served) == expected
        (change, *_) = flips(served.attempt, Role.prefill)
        log = served.attempt.agent_log(0).read_text()
        assert RESTARTED % change.rank in log
        assert "transfer backend 'nixl' does not support runtime role switch" in log
