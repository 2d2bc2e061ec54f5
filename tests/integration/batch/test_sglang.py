"""Batches with the concurrent handoff of SGLang."""

from pathlib import Path

from tests.support.runs import SIMULATOR, answers, each_once, hpc_dynamo, latest, write_prompts

DIALECT = (*SIMULATOR, "engine.args.pd-protocol=sglang", "input=prompts.jsonl")
SPLIT = ("topology=disaggregated", "topology.nodes=2")


def test_sglang_batch_equals_sequential_batch(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 30)
    for name, words in {
        "rooms": (*DIALECT, *SPLIT),
        "whole": (*DIALECT, "topology=aggregated"),
        "turns": (*SIMULATOR, *SPLIT, "input=prompts.jsonl"),
    }.items():
        done = hpc_dynamo("batch", *words, f"name={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        each_once(tmp_path / "runs" / name, ids)
    found = [answers(tmp_path / "runs" / name / "output.jsonl") for name in ("rooms", "turns")]
    assert found[0] == found[1] == answers(tmp_path / "runs/whole/output.jsonl")
    outcome = latest(tmp_path / "runs/rooms").outcome()
    assert outcome is not None
    assert outcome.summary is not None
    assert outcome.summary.kv_bytes > 0, "NIXL moved nothing"


def test_repeated_worker_crashes_lose_no_request(tmp_path: Path) -> None:
    """Wait for a worker of each role that executes requests."""
    ids = write_prompts(tmp_path / "prompts.jsonl", 60)
    dying = ("engine.args.fail-after-requests=20", "engine.max_restarts=20", "batch.max_retries=12")
    two = ("topology.prefill.workers=2", "topology.decode.workers=2")
    words = (*DIALECT, *SPLIT, *dying, *two, "batch.concurrency=4")
    done = hpc_dynamo("batch", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    each_once(tmp_path / "runs/prompts", ids)
    logs = "".join(log.read_text() for log in latest(tmp_path / "runs/prompts").path.rglob("*.log"))
    assert "was killed by signal 9" in logs
