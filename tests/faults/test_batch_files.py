"""Files of a batch that change or are damaged between two attempts."""

import subprocess
import sys
from pathlib import Path

from hpc_dynamo.messages import Outcome
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import (
    HANG_S,
    SIMULATOR,
    each_once,
    hpc_dynamo,
    latest,
    until,
    write_prompts,
)

BATCH = ("batch", *SIMULATOR, "input=p.jsonl", "topology=aggregated")


def test_damaged_results_and_changed_input(tmp_path: Path, fault: FaultRecorder) -> None:
    ids = write_prompts(tmp_path / "p.jsonl", 8)
    run = tmp_path / "runs/p"
    assert hpc_dynamo(*BATCH, cwd=tmp_path).returncode == 0
    part = run / "parts/1.jsonl"
    first, *rest = part.read_bytes().splitlines(keepends=True)
    row = fault("damaged line in the results of a batch", "skipped with a warning, done again")
    part.write_bytes(bytes(len(first) - 1) + b"\n" + b"".join(rest))
    done = hpc_dynamo(*BATCH, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{part}:1: a damaged line is skipped" in done.stderr
    part.write_bytes(b"".join(rest))
    each_once(run, ids)
    row.requests(len(ids))
    fault("input edited after the submission", "refused, both fingerprints named")
    changed_input(tmp_path, run)


def changed_input(tmp_path: Path, run: Path) -> None:
    """The input is edited after the submission, before the job reads it. Lengths stay equal."""
    file, attempt = tmp_path / "p.jsonl", latest(run)
    (run / f"parts/{attempt.number}.jsonl").unlink()
    text = file.read_text()
    file.write_text(text.replace("number 3", "number 4"))
    submit = (sys.executable, "-m", "hpc_dynamo.launch.next_attempt", str(attempt.path))
    subprocess.run(submit, check=True, capture_output=True, timeout=HANG_S)
    outcome: Outcome = until("the outcome", lambda: latest(run).outcome())
    assert outcome.exit_code == 3
    assert f"{file} was changed after the job was submitted: its SHA-256 is " in outcome.message
    assert f"but {run}/run.json has " in outcome.message
    assert not (run / f"parts/{latest(run).number}.jsonl").exists()
    done = hpc_dynamo(*BATCH, cwd=tmp_path)
    assert done.returncode == 3
    assert "holds results of another input" in done.stderr
