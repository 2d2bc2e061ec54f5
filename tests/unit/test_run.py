"""Run folder: permissions, atomic writes, and unique attempt numbers."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo import jsonl
from hpc_dynamo.cli.log_tail import MAX_BYTES, LogTail
from hpc_dynamo.config import Config, Engine, Role, Topology
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.launch.exit_code import exit_code
from hpc_dynamo.messages import BatchSummary, NodeRecord, Outcome, Progress
from hpc_dynamo.run import Attempt, Run, Secrets, new_token, read_json, write_atomic, write_json
from hpc_dynamo.topology import Plan, Shard, Worker
from tests.support.runs import HANG_S


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_run_folder_is_private(run: Run) -> None:
    assert mode(run.path) == 0o700
    assert mode(run.secrets_file) == 0o600


def test_existing_secrets_are_kept(run: Run) -> None:
    first = run.secrets()
    run.create(Secrets(token=new_token(), public="other", private="other"))
    assert run.secrets() == first
    assert len(first.token) >= 43, "256 bits in base 64"
    assert new_token() != new_token()


def test_run_records_round_trip(run: Run) -> None:
    config = Config(engine=Engine(args={"a": [1, None, {"b": "ü"}]}), topology=Topology(nodes=2))
    plan = Plan(2, 4, (Worker(0, Role.prefill, (Shard(0, (0, 1)), Shard(1, (0,)))),))
    attempt = run.new_attempt(config, plan)
    assert attempt.number == 1
    assert attempt.config() == config
    assert attempt.plan() == plan
    assert [a.path for a in run.attempts()] == [attempt.path]
    assert attempt.run.path == run.path
    assert [attempt.job(), attempt.roster(), attempt.status(), attempt.outcome()] == [None] * 4


def test_default_figures_round_trip_through_json(attempt: Attempt) -> None:
    """NaN has no spelling in JSON."""
    summary = BatchSummary(progress=Progress(), seconds=1.0)
    write_json(attempt.outcome_file, Outcome(exit_code=0, summary=summary))
    outcome = attempt.outcome()
    assert outcome == Outcome(exit_code=0, summary=summary)


def test_attempts_are_sorted_by_number(run: Run) -> None:
    for _ in range(11):
        run.new_attempt(Config(), Plan(1, 0, ()))
    assert [a.number for a in run.attempts()] == list(range(1, 12))


def test_started_agents_are_listed(attempt: Attempt) -> None:
    for node in (0, 2):
        record = NodeRecord(node=node, host=f"n{node}", address="::", pid=1, log="")
        write_json(attempt.node_file(node), record)
    assert [n.host for n in attempt.nodes()] == ["n0", "n2"]


def test_run_identity_is_stored(run: Run) -> None:
    assert run.identity() is None
    run.write_identity(Path("/data/my prompts.jsonl"), "f00")
    identity = run.identity()
    assert identity is not None
    assert (identity.input, identity.fingerprint) == ("/data/my prompts.jsonl", "f00")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"exit_code": "x"}', b"\xff"])
def test_invalid_record_error_names_file(attempt: Attempt, content: bytes) -> None:
    attempt.outcome_file.write_bytes(content)
    with pytest.raises(HpcDynamoError) as broken:
        attempt.outcome()
    assert f"{attempt.outcome_file} cannot be read: " in broken.value.message
    assert "by hand" in broken.value.hint


def test_missing_record_error_names_file(run: Run) -> None:
    with pytest.raises(HpcDynamoError, match=r"config\.json is missing") as missing:
        Attempt(run.path / "attempts" / "9").config()
    assert "shared disk" in missing.value.hint


def test_atomic_write_shows_old_or_new_content(tmp_path: Path) -> None:
    file, small, large = tmp_path / "f", b"a" * 10, b"b" * 3_000_000
    write_atomic(file, small)
    seen, done = set[bytes](), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        write_atomic(file, large)
        write_atomic(file, small)
    done.set()
    reader.join()
    assert seen <= {small, large}
    assert len(seen) == 2, "the reader was never there in between"
    assert list(tmp_path.iterdir()) == [file], "a temporary file is left"


def test_private_file_has_mode_0600_from_start(tmp_path: Path) -> None:
    write_json(tmp_path / "secret", {"a": 1}, mode=0o600)
    assert mode(tmp_path / "secret") == 0o600
    assert read_json(tmp_path / "secret", dict) == {"a": 1}


CLAIM = """
import sys
from pathlib import Path
from hpc_dynamo.config import Config
from hpc_dynamo.run import Run
from hpc_dynamo.topology import Plan
print("here", flush=True)
sys.stdin.readline()
for _ in range(20):
    print(Run(Path(sys.argv[1])).new_attempt(Config(), Plan(1, 0, ())).number)
"""


def test_concurrent_attempts_get_different_numbers(run: Run) -> None:
    argv = [sys.executable, "-c", CLAIM, str(run.path)]
    pipe = subprocess.PIPE
    claimers = [subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for claimer in claimers:
        assert claimer.stdout
        assert claimer.stdout.readline() == "here\n"
    for claimer in claimers:
        assert claimer.stdin
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    numbers = [int(n) for c in claimers for n in c.communicate(timeout=HANG_S)[0].split()]
    assert sorted(numbers) == list(range(1, 61))


def test_records_with_unknown_fields_are_read(attempt: Attempt) -> None:
    """Unknown fields are no reason to lose a run."""
    attempt.outcome_file.write_bytes(msgspec.json.encode({"exit_code": 0, "news": 1}))
    assert attempt.outcome() == Outcome(exit_code=0)


def test_job_reports_the_exit_code_of_its_outcome(attempt: Attempt) -> None:
    """Without an outcome it reports that of srun."""
    assert [exit_code(attempt, code) for code in (0, 137)] == [0, 137]
    write_json(attempt.outcome_file, Outcome(exit_code=4))
    assert exit_code(attempt, 137) == 4


def test_record_that_is_a_pipe_or_too_large_is_refused(tmp_path: Path) -> None:
    """Another user may have made it: a read of a pipe does not wait, and none fills the memory."""
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(3 << 30)
    for path in (pipe, large, Path("/dev/zero")):
        with pytest.raises(HpcDynamoError, match=r"it is not a regular file|it has more than"):
            read_json(path, dict)


def test_record_that_is_nested_too_deep_is_refused(attempt: Attempt) -> None:
    depth = 100_000
    attempt.outcome_file.write_bytes(b'{"unknown":' + b"[" * depth + b"]" * depth + b"}")
    with pytest.raises(HpcDynamoError, match=r"outcome\.json cannot be read"):
        attempt.outcome()


def test_lines_of_a_pipe_or_a_device_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(OSError, match="not a regular file"):
            next(jsonl.read(tmp_path / name, Outcome))
    assert list(jsonl.read(tmp_path / "missing", Outcome)) == []


def test_end_of_a_log_without_newlines_is_read_within_a_limit(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast\n")
    tail = LogTail(log)
    assert tail.last(1) == ["last"]
    lines = tail.last(2)
    assert lines[1:] == ["last"]
    assert MAX_BYTES / 2 <= len(lines[0]) <= 2 * MAX_BYTES


def test_later_lines_of_texts_that_are_shown_are_indented(attempt: Attempt) -> None:
    """The run may be of another user, and a line could pass for a message of this program."""
    texts = {
        "failed\nerror: forged": "failed\n  error: forged",
        "failed\n  log: l\n\n try: t\n": "failed\n  log: l\n  \n   try: t\n  ",
        'C:\\new \\\\n \t"\u4e2d': 'C:\\new \\\\n \t"\u4e2d',
    }
    for text, shown in texts.items():
        write_json(attempt.outcome_file, Outcome(exit_code=1, message=text))
        for _ in range(2):  # the second time it is indented already
            outcome = attempt.outcome()
            assert outcome
            assert outcome.message == shown
            write_json(attempt.outcome_file, outcome)
    attempt.outcome_file.write_bytes(rb'{"exit_code":1,"message":"a\u000Ab\\u000ac"}')
    outcome = attempt.outcome()
    assert outcome
    assert outcome.message == "a\n  b\\u000ac"
