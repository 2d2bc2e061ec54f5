"""`batch.retry_failed=true` runs failed requests again, once per round."""

import json
import re
from pathlib import Path

from hpc_dynamo.batch.exit_status import exit_status
from hpc_dynamo.batch.input_file import BatchInput
from hpc_dynamo.batch.ledger import Ledger
from hpc_dynamo.cli.run_folder import batch_run
from hpc_dynamo.config import Config
from hpc_dynamo.errors import ExitCode
from hpc_dynamo.run import Run
from tests.integration.results.kept import (
    InJob,
    Start,
    attempt,
    bad,
    failed,
    good,
    refused,
    with_fields,
)
from tests.support.runs import SIMULATOR, answers, hpc_dynamo, results_on_disk, write_prompts


def states(run: Run, requests: BatchInput) -> tuple[list[str], list[str]]:
    """Return the ids with an answer, and those that will still run."""
    ledger = Ledger(run, 0)
    answered = [i for i, spot in ledger.results().items() if spot.answered]
    return sorted(answered), [entry.custom_id for entry in ledger.unfinished(requests)]


def test_retry_runs_only_failed_requests_again(
    config: Config, requests: BatchInput, start: Start
) -> None:
    retry = with_fields(config, batch__retry_failed=True)
    attempt(start(config), config, good(0), bad(1), bad(2, 500), good(3))
    run = start(retry)
    assert states(run, requests) == (["request 0", "request 3"], ["request 1", "request 2"])
    attempt(run, retry, good(1), bad(2))
    Ledger(run, 9).merge(entry.custom_id for entry in requests.entries)
    assert list(answers(run.output, text=False)) == ["request 0", "request 1", "request 3"]
    assert failed(run.errors) == ["request 2"]


def test_interrupted_retry_is_resumed(
    config: Config,
    requests: BatchInput,
    start: Start,
    in_job: InJob,
) -> None:
    """A requeue or the same command does not repeat failures of the round. After its end the
    command starts the next round."""
    retry = with_fields(config, batch__retry_failed=True)
    attempt(start(config), config, *map(bad, range(4)))
    in_job("77", 0)
    run = start(retry)
    attempt(run, retry, bad(0), good(1), job="77")
    in_job("77", 1)
    assert states(start(retry), requests)[1] == ["request 2", "request 3"]
    attempt(run, retry, bad(2), job="77")
    in_job("78", 0)
    assert states(start(retry), requests)[1] == ["request 3"], "the same command again"
    assert states(start(config), requests)[1] == ["request 3"], "or the one without a retry"
    attempt(run, retry, bad(3, 500), job="77")
    in_job("77", 2)
    assert states(start(retry), requests)[1] == ["request 3"], "requeued after its last request"
    in_job("79", 0)
    assert states(start(retry), requests)[1] == ["request 0", "request 2", "request 3"]


def test_retry_of_incomplete_batch_runs_remaining_requests(
    config: Config, requests: BatchInput, start: Start
) -> None:
    attempt(start(config), config, good(0), bad(1))
    run = start(with_fields(config, batch__retry_failed=True))
    assert states(run, requests)[1] == ["request 1", "request 2", "request 3"]


def test_retry_without_failures_runs_nothing(
    config: Config, requests: BatchInput, start: Start
) -> None:
    attempt(start(config), config, *map(good, range(4)))
    run = start(with_fields(config, batch__retry_failed=True))
    assert states(run, requests)[1] == []
    assert not run.retry_file.exists()


def test_retry_may_change_engine_options_and_prints_them(
    config: Config, requests: BatchInput, start: Start, said: list[str]
) -> None:
    attempt(start(config), config, good(0), bad(1), good(2), good(3))
    longer = with_fields(config, engine__args={"dtype": "float32", "max-model-len": 8192})
    assert "batch.retry_failed=true runs only its 1 failed" in refused(start, longer).hint
    retry = with_fields(longer, batch__retry_failed=True)
    run = batch_run(retry, requests, said.append)
    assert "engine.args.max-model-len: not set → 8192" in said[0]
    attempt(run, retry, bad(1))
    start(longer)
    assert "max-model-len" in refused(start, config).message
    other = with_fields(retry, model__path="org/b")
    error = refused(start, other)
    assert "retry_failed" not in error.hint, "it would not help"


def test_retry_without_results_may_change_everything(config: Config, start: Start) -> None:
    attempt(start(config), config, *map(bad, range(4)))
    other = with_fields(config, batch__body_defaults={"max_tokens": 5})
    error = refused(start, other)
    assert "holds 4 failed requests made with other settings" in error.message
    assert error.hint.startswith("batch.retry_failed=true runs only its 4 failed requests again")
    start(with_fields(other, batch__retry_failed=True))


def test_retry_with_longer_context_answers_long_prompt(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "in.jsonl", 3)
    long = {"custom_id": "long", "prompt": "word " * 300, "max_tokens": 4}
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(json.dumps(long) + "\n")
    words = ("batch", *SIMULATOR, "input=in.jsonl")
    first = hpc_dynamo(*words, "engine.args.max-model-len=256", cwd=tmp_path)
    run = tmp_path / "runs/in"
    assert failed(run / "errors.jsonl") == ["long"]
    before = answers(run / "output.jsonl")
    longer = ("engine.args.max-model-len=4096", "batch.retry_failed=true")
    retried = hpc_dynamo(*words, *longer, cwd=tmp_path)
    assert retried.returncode == 0, retried.stderr + first.stdout
    assert "batch.retry_failed=true: 1 failed requests run again" in retried.stdout
    after = answers(run / "output.jsonl")
    assert list(after) == [*ids, "long"]
    assert before.items() <= after.items()
    assert results_on_disk(run) == 5, "more than the failed request ran again"
    assert (run / "errors.jsonl").read_text() == ""


def test_engine_message_is_in_summary_and_errors(tmp_path: Path) -> None:
    """This also applies if no request was answered."""
    (tmp_path / "in.jsonl").write_text('{"prompt": "word word", "max_tokens": 99999}\n')
    done = hpc_dynamo("batch", *SIMULATOR, "input=in.jsonl", cwd=tmp_path)
    assert done.returncode == 3, done.stdout
    (row,) = map(json.loads, (tmp_path / "runs/in/errors.jsonl").read_text().splitlines())
    sentence = row["response"]["body"]["error"]["message"]
    assert "99999" in sentence
    assert row["error"]["message"].endswith(sentence)
    assert sentence in done.stderr


def test_batch_with_failures_names_first_error_and_remedy(tmp_path: Path) -> None:
    """A retry does not change an error of the request itself, so it is not advised twice."""
    write_prompts(tmp_path / "in.jsonl", 1)
    with (tmp_path / "in.jsonl").open("a") as file:
        for name in ("long", "longer"):
            file.write(
                json.dumps({"custom_id": name, "prompt": "word", "max_tokens": 99999}) + "\n"
            )
    words = ("batch", *SIMULATOR, "input=in.jsonl")
    done = hpc_dynamo(*words, cwd=tmp_path)
    assert "finished, but 2 requests of 3 failed: see " in done.stderr
    assert re.search(r"the first error: long: .*99999", done.stderr)
    assert "try: run the same command with batch.retry_failed=true" in done.stderr
    again = hpc_dynamo(*words, cwd=tmp_path)
    assert re.search(r"the first error: long: .*99999", again.stdout), "also with nothing to do"
    retried = hpc_dynamo(*words, "batch.retry_failed=true", cwd=tmp_path)
    assert retried.returncode == done.returncode
    assert "the same command with batch.retry_failed" not in retried.stderr
    assert "these errors are final: change the" in retried.stderr


def test_transient_failure_advises_retry_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.errors.write_bytes(bad(1) + bad(2, 500))
    code, said = exit_status(run, 1, 2, retried=True)
    assert code == ExitCode.some_failed
    assert "the first error: request 1: too long" in said
    assert said.endswith("try: run the same command with batch.retry_failed=true")
    run.errors.write_bytes(bad(1) + bad(2))
    assert "errors are final" in exit_status(run, 1, 2, retried=True)[1]
    assert "errors are final" not in exit_status(run, 1, 2, retried=False)[1]
    assert exit_status(run, 0, 2, retried=False)[0] == 3
    assert exit_status(run, 2, 0, retried=True) == (0, "")
