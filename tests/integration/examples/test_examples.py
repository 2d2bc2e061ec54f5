"""Every example of examples/ runs as it is, with the simulator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import HANG_S, answers, hpc_dynamo

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
# The scripts use `hpc-dynamo` and `python3` of this environment, and no Slurm of this machine.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run(*argv: str, cwd: Path) -> str:
    """Run a command to its end and return what it printed."""
    done = subprocess.run(
        argv, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_batch_example_answers_two_requests_and_reports_one_failure(tmp_path: Path) -> None:
    run(str(EXAMPLES / "batch/run.sh"), "cluster.launcher=local", cwd=tmp_path)
    assert list(answers(tmp_path / "runs/example/output.jsonl")) == ["paris", "colours"]
    (failed,) = (tmp_path / "runs/example/errors.jsonl").read_text().splitlines()
    assert json.loads(failed)["custom_id"] == "too-long"


@pytest.mark.slow
def test_serve_example_streams_an_answer_to_the_openai_client(tmp_path: Path) -> None:
    printed = run(str(EXAMPLES / "serve/run.sh"), "cluster.launcher=local", cwd=tmp_path)
    tokens = 16  # one word each
    assert any(len(line.split()) == tokens for line in printed.splitlines()), printed


@pytest.mark.slow
def test_notebook_cells_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((EXAMPLES / "notebook/batch.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", ENVIRONMENT["PATH"])
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            exec(compile(source, "batch.ipynb", "exec"), names)
    assert "What does a router do?" in capsys.readouterr().out


def test_site_example_sets_the_script_of_a_job(tmp_path: Path) -> None:
    arguments = ("--config-dir", str(EXAMPLES / "site"), "cluster=example")
    done = hpc_dynamo("plan", "--sbatch", "engine=simulator", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("--partition=gpu", "--account=my-account", "--mail-type=END,FAIL"):
        assert line in done.stdout
