"""A batch on a prefill and a decode worker of real SGLang has the answers of one worker."""

from pathlib import Path

import pytest

from tests.support.runs import answers, each_once, hpc_dynamo, write_prompts
from tests.support.vllm import provisioned_sglang

pytestmark = [pytest.mark.sglang, pytest.mark.timeout(1200)]

RUN_S = 500.0  # on a busy machine


def run_batch(folder: Path, topology: str) -> None:
    engine = provisioned_sglang()
    words = [f"engine={engine.config}", f"engine.python={engine.python}", "model.name=smol"]
    words += [f"model.path={engine.model}", "cluster.launcher=local", "input=prompts.jsonl"]
    words += [f"topology={topology}", f"name={topology}"]
    done = hpc_dynamo("batch", *words, cwd=folder, timeout_s=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_batch_on_two_workers_equals_one_worker(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 6, max_tokens=12)
    for topology in ("aggregated", "disaggregated"):
        run_batch(tmp_path, topology)
        each_once(tmp_path / "runs" / topology, ids)
    one, two = (
        answers(tmp_path / "runs" / topology / "output.jsonl")
        for topology in ("aggregated", "disaggregated")
    )
    assert one == two
