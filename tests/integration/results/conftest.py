from pathlib import Path

import pytest

from hpc_dynamo.batch.input_file import BatchInput, read_input
from hpc_dynamo.cli.run_folder import batch_run
from hpc_dynamo.config import Config
from tests.integration.results.kept import InJob, Start, with_fields
from tests.support.runs import write_prompts


@pytest.fixture
def requests(tmp_path: Path) -> BatchInput:
    write_prompts(tmp_path / "in.jsonl", 4)
    return read_input(tmp_path / "in.jsonl")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    base = Config(name="r", runs_dir=str(tmp_path / "runs"))
    return with_fields(base, model__path="org/model", engine__args={"dtype": "float32"})


@pytest.fixture
def start(requests: BatchInput) -> Start:
    return lambda config: batch_run(config, requests, lambda _: None)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> InJob:
    def life(job: str, restarts: int) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        if restarts:
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        else:
            monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)

    return life
