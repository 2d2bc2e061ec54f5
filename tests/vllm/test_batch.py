"""Real vLLM on the CPU: disaggregated text equals that of a single worker."""

import json
from pathlib import Path

import pytest

from hpc_dynamo.demo.provision import DemoEngine
from tests.support.comparable import batch_answers
from tests.support.runs import answers, hpc_dynamo, latest
from tests.support.unusual_bodies import ANSWERS, LISTS
from tests.support.vllm import provisioned

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Write one sentence about the sea.",
    "How many legs does a spider have?",
    "What do bees make?",
    "Translate 'good morning' into Spanish.",
)


# Several prompts, or several answers: bodies that prefill and decode workers must not share.
UNSHARED = (LISTS[0], LISTS[2], LISTS[3], LISTS[7], ANSWERS[0])


@pytest.fixture(scope="module")
def vllm() -> DemoEngine:
    return provisioned()


def _write(file: Path) -> None:
    rows = (
        {
            "custom_id": f"q{i}",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 24,
            "temperature": 0,
        }
        for i, question in enumerate(QUESTIONS)
    )
    unshared = (case.batch_line for case in UNSHARED)
    file.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *unshared)))


def test_greedy_batch_equals_text_of_aggregated_worker(vllm: DemoEngine, tmp_path: Path) -> None:
    _write(tmp_path / "questions.jsonl")
    words = (
        "engine=vllm-cpu",
        "cluster.launcher=local",
        f"engine.python={vllm.python}",
        f"model.path={vllm.model}",
        "input=questions.jsonl",
    )
    found, texts, moved = {}, {}, {}
    for kind in ("aggregated", "disaggregated"):
        done = hpc_dynamo(
            "batch", *words, f"topology={kind}", f"name={kind}", cwd=tmp_path, timeout_s=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
        run = tmp_path / "runs" / kind
        outcome = latest(run).outcome()
        assert outcome is not None
        assert outcome.summary is not None
        texts[kind], moved[kind] = answers(run / "output.jsonl"), outcome.summary.kv_bytes
        assert outcome.summary.itl.count > 0
        found[kind] = batch_answers(run)
    assert found["disaggregated"] == found["aggregated"]
    assert len(texts["aggregated"]) == len(QUESTIONS) + len(UNSHARED)
    assert all(texts["aggregated"].values())
    assert moved["aggregated"] == 0
    assert moved["disaggregated"] > 0, "NIXL's byte counter did not move"
