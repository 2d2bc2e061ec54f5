"""`overwrite=true` deletes no result, and takes effect once per job."""

from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo.batch.input_file import BatchInput, read_input
from hpc_dynamo.cli.run_folder import batch_run
from hpc_dynamo.config import Config
from hpc_dynamo.errors import ConfigError
from tests.integration.results.kept import InJob, attempt, bad, good, with_fields
from tests.support.runs import results_on_disk, write_prompts


def test_overwrite_renames_earlier_results(
    config: Config, requests: BatchInput, said: list[str], tmp_path: Path
) -> None:
    anew, runs = replace(config, overwrite=True), tmp_path / "runs"
    for number in (1, 2, 3):
        run = batch_run(anew, requests, said.append)
        assert results_on_disk(run.path) == 0
        attempt(run, config, good(number), bad(0))
    assert results_on_disk(runs / "r.old-1") == results_on_disk(runs / "r.old-2") == 2
    assert b"request 1" in (runs / "r.old-1/parts/1.jsonl").read_bytes()
    assert said == [
        f"overwrite=true: 2 earlier results of {runs}/r are now in {runs}/r.old-{n}" for n in (1, 2)
    ]


def test_overwrite_accepts_other_settings_and_input(
    config: Config, requests: BatchInput, said: list[str], tmp_path: Path
) -> None:
    attempt(batch_run(config, requests, said.append), config, good(0))
    write_prompts(tmp_path / "other.jsonl", 2)
    other = with_fields(config, model__path="org/b", overwrite=True)
    run = batch_run(other, read_input(tmp_path / "other.jsonl"), said.append)
    assert run.attempts() == []


def test_overwrite_deletes_a_run_without_results(
    config: Config, requests: BatchInput, said: list[str], tmp_path: Path
) -> None:
    attempt(batch_run(config, requests, said.append), config)
    batch_run(replace(config, overwrite=True), requests, said.append)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["r"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_that_is_not_a_run_is_refused(
    config: Config, requests: BatchInput, said: list[str], tmp_path: Path, overwrite: bool
) -> None:
    """`runs_dir=.` contains a data folder with the name of the input."""
    data = tmp_path / "runs/r"
    data.mkdir(parents=True, mode=0o755)
    (data / "output.jsonl").write_text("mine\n")
    before = data.stat().st_mode
    with pytest.raises(ConfigError, match=r"not the folder of a run; it contains output\.jsonl"):
        batch_run(replace(config, overwrite=overwrite), requests, said.append)
    assert (data / "output.jsonl").read_text() == "mine\n"
    assert data.stat().st_mode == before


def test_overwrite_never_deletes_a_foreign_file(
    config: Config, requests: BatchInput, said: list[str], tmp_path: Path
) -> None:
    run = batch_run(config, requests, said.append)
    attempt(run, config)
    (run.path / "thesis").mkdir()
    (run.path / "thesis/thesis.tex").write_text("mine")
    run = batch_run(replace(config, overwrite=True), requests, said.append)
    assert (run.path / "thesis/thesis.tex").read_text() == "mine"
    assert run.attempts() == []


@pytest.mark.parametrize("record", [{"job": "77"}, {"job": "4242", "inside": "77"}], ids=str)
def test_overwrite_has_no_effect_after_requeue(
    config: Config,
    requests: BatchInput,
    said: list[str],
    in_job: InJob,
    record: dict[str, str],
) -> None:
    anew = replace(config, overwrite=True)
    attempt(batch_run(config, requests, said.append), config, good(0), job="5")
    in_job("77", 0)
    run = batch_run(anew, requests, said.append)
    assert results_on_disk(run.path) == 0, "it took no effect in the first life"
    for life in (1, 2):
        attempt(run, config, good(life), **record)
        in_job("77", life)
        run = batch_run(anew, requests, said.append)
        assert results_on_disk(run.path) == life
    assert said[-1] == f"overwrite=true took effect when this job first ran: {run.path} is resumed"


def test_overwrite_takes_effect_after_restart_before_overwriting(
    config: Config, requests: BatchInput, said: list[str], in_job: InJob
) -> None:
    """The first execution was preempted before the command ran. Also applies to another job or
    array task of the same script."""
    attempt(batch_run(config, requests, said.append), config, good(0), job="5")
    in_job("77", 1)
    run = batch_run(replace(config, overwrite=True), requests, said.append)
    assert results_on_disk(run.path) == 0
