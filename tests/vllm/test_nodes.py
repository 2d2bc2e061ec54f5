"""Real vLLM spread over three agents of this machine: each holds a third of every layer."""

import json
from pathlib import Path

import pytest

from tests.support.runs import answers, hpc_dynamo, latest
from tests.support.vllm import provisioned
from tests.support.vllm_serve import SMALL_CACHE

pytestmark = pytest.mark.vllm

# The model has nine heads, and what vLLM's CPU build computes on it takes for a node's one GPU.
THREE_PARTS = (
    *("engine=vllm-cpu", "engine.device=cuda", "cluster.launcher=local", "cluster.preflight=false"),
    *("cluster.gpus_per_node=1", "topology=aggregated", "topology.aggregated.tensor_parallel=3"),
    *("router=least_loaded", "input=questions.jsonl", SMALL_CACHE),
)


def test_worker_over_three_nodes_answers(tmp_path: Path) -> None:
    vllm = provisioned()
    ask = {
        "custom_id": "q",
        "prompt": "The capital of France is",
        "max_tokens": 4,
        "temperature": 0,
    }
    (tmp_path / "questions.jsonl").write_text(f"{json.dumps(ask)}\n")
    words = (f"engine.python={vllm.python}", f"model.path={vllm.model}")
    done = hpc_dynamo("batch", *THREE_PARTS, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs/questions"
    assert "Paris" in answers(run / "output.jsonl")["q"]
    attempt = latest(run)
    assert attempt.plan().nodes == 3
    outcome = attempt.outcome()
    assert outcome is not None
    assert outcome.summary is not None
    assert outcome.summary.itl.count > 0
    assert outcome.summary.kv_bytes == 0
    for part in (1, 2):
        assert "headless multiproc executor" in attempt.worker_log(0, part).read_text()
