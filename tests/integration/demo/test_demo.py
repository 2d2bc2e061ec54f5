"""The demo: its prompts, and resuming, locking and errors of the installer. Nothing is fetched."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from hpc_dynamo.batch.input_file import read_input
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Device, Launcher, TopologyKind
from hpc_dynamo.demo.__main__ import PROMPTS, answers, batch_arguments
from hpc_dynamo.demo.engine_environment import DemoEngine
from hpc_dynamo.demo.steps import (
    InstallProgress,
    InstallStep,
    exclusive_lock,
    require_free_disk,
    run_steps,
)
from hpc_dynamo.errors import HpcDynamoError
from tests.support.runs import HANG_S, until


def python(code: str, *args: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *args)


def note(file: Path, word: str) -> InstallStep:
    """Return a step that appends a word to a file, as a record of its runs."""
    code = "import sys; print(sys.argv[2], file=open(sys.argv[1], 'a'))"
    return InstallStep(word, (python(code, str(file), word),))


def words(file: Path) -> list[str]:
    return file.read_text().split()


def test_prompts_form_batch_with_shared_prefix() -> None:
    requests = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    assert len(requests) >= 24
    for request in requests:
        assert request["method"] == "POST"
        assert request["url"] == "/v1/chat/completions"
        assert request["body"]["temperature"] == 0
        assert "model" not in request["body"]
    shared = [r["body"]["messages"][0]["content"] for r in requests if "school" in r["custom_id"]]
    assert len(shared) >= 5
    assert len(set(shared)) == 1, "without a shared system prompt there is no prefix hit"
    assert len(shared[0].split()) > 128, "shorter than a block of vLLM's cache"


def test_batch_accepts_prompts() -> None:
    assert len(read_input(PROMPTS).entries) == len(PROMPTS.read_text().splitlines())


@pytest.mark.parametrize("folder", ["plain", "with space", "o'clock", "a=b, c"])
def test_batch_arguments_compose(folder: str) -> None:
    engine = DemoEngine(Path("/cache") / folder / "python", Path("/cache") / folder / "model")
    verb, *overrides = batch_arguments(engine, ["topology.prefill.workers=2"])
    config = compose(overrides)
    assert verb == "batch"
    assert config.engine.python == str(engine.python)
    assert config.model.path == str(engine.model)
    assert config.topology.kind is TopologyKind.disaggregated
    assert config.topology.prefill.workers == 2
    assert config.cluster.launcher is Launcher.local
    assert config.input == str(PROMPTS)


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_each_engine_of_demo_selects_its_settings(name: str) -> None:
    engine = DemoEngine(Path("/python"), Path("/model"), f"{name}-cpu")
    config = compose(batch_arguments(engine, [])[1:])
    assert (config.engine.name, config.engine.device) == (name, Device.cpu)


def test_answers_are_paired_with_questions(tmp_path: Path) -> None:
    output = tmp_path / "output.jsonl"
    body = {"choices": [{"message": {"content": "Paris."}}]}
    line = {"custom_id": "plain-01", "response": {"status_code": 200, "body": body}}
    output.write_text(json.dumps(line) + "\n")
    assert list(answers(output)) == [("What is the capital of France?", "Paris.")]


def test_finished_steps_do_not_run_again(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    plan = [note(seen, "one"), note(seen, "two")]
    run_steps(plan, tmp_path, InstallProgress())
    run_steps(plan, tmp_path, InstallProgress())
    assert words(seen) == ["one", "two"]


def test_installation_resumes_at_failed_step(tmp_path: Path) -> None:
    seen, switch = tmp_path / "seen", tmp_path / "switch"
    needs = InstallStep("needs", (python("import sys; open(sys.argv[1])", str(switch)),))
    plan = [note(seen, "one"), needs, note(seen, "three")]
    with pytest.raises(HpcDynamoError, match=r"needs ended with exit code 1: .*switch") as e:
        run_steps(plan, tmp_path, InstallProgress())
    assert e.value.log == tmp_path / "needs.log"
    assert "resumes at this step" in e.value.hint
    assert words(seen) == ["one"]
    switch.touch()
    run_steps(plan, tmp_path, InstallProgress())
    assert words(seen) == ["one", "three"]


def test_changed_step_and_later_steps_run_again(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    run_steps(
        [note(seen, "one"), note(seen, "two"), note(seen, "three")], tmp_path, InstallProgress()
    )
    changed = InstallStep("two", (*note(seen, "two").commands, python("pass")))
    run_steps([note(seen, "one"), changed, note(seen, "three")], tmp_path, InstallProgress())
    assert words(seen) == ["one", "two", "three", "two", "three"]


def test_another_interpreter_does_not_repeat_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, other = tmp_path / "seen", os.path.realpath(sys.executable)
    assert other != sys.executable, "this test needs an interpreter behind a symbolic link"
    run_steps([note(seen, "one")], tmp_path, InstallProgress())
    monkeypatch.setattr(sys, "executable", other)
    run_steps([note(seen, "one")], tmp_path, InstallProgress())
    assert words(seen) == ["one"]


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("OSError: [Errno 28] No space left on device", "HPC_DYNAMO_CACHE"),
        ("Failed to establish a new connection: [Errno -2]", "PIP_INDEX_URL"),
        ("No matching distribution found for torch==2.13.0+cpu", "HPC_DYNAMO_TORCH_ARGS"),
        ("ensurepip is not available", "python3-venv"),
    ],
)
def test_known_failure_has_hint(tmp_path: Path, said: str, hint: str) -> None:
    step = InstallStep("pip", (python("import sys; sys.exit(sys.argv[1])", said),))
    with pytest.raises(HpcDynamoError) as e:
        run_steps([step], tmp_path, InstallProgress())
    assert said in e.value.message
    assert hint in e.value.hint


def test_hanging_step_is_killed(tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    sleeper = python("import time; time.sleep(600)", mark)
    with subprocess.Popen(sleeper) as visible:
        until("a sleeper's command line", lambda: runs_with(mark))
        visible.kill()
    step = InstallStep("hang", (sleeper,), limit_s=0.5)
    with pytest.raises(HpcDynamoError, match="hang did not end in time"):
        run_steps([step], tmp_path, InstallProgress())
    assert not runs_with(mark)


def runs_with(argument: str) -> bool:
    """Return True if a process on this machine has this argument."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if argument.encode() in (process / "cmdline").read_bytes():
                return True
    return False


def test_progress_writes_lines_to_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "import time; print('50%\\rhalf done', flush=True); time.sleep(0.9)"
    run_steps([InstallStep("slow", (python(code),))], tmp_path, InstallProgress(period_s=0.2))
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].endswith("1/1 slow")
    assert any(line.endswith("1/1 slow: half done") for line in lines[1:-1])
    assert re.search(r"1/1 slow: done in \d+ s", lines[-1])


def test_full_disk_is_reported_before_download(tmp_path: Path) -> None:
    require_free_disk(tmp_path / "not" / "there" / "yet", 0.0)
    with pytest.raises(HpcDynamoError, match=r"GB free, the engine needs 1000000\.0 GB") as e:
        require_free_disk(tmp_path, 1e6)
    assert "HPC_DYNAMO_CACHE" in e.value.hint


HOLD = """
import subprocess, sys
from pathlib import Path
from hpc_dynamo.demo.steps import InstallProgress, InstallStep, exclusive_lock, run_steps
folder = Path(sys.argv[1])
child = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(float(sys.argv[2]))"
with exclusive_lock(folder, InstallProgress()):
    step = InstallStep("hold", ((sys.executable, "-c", child, str(folder / "held"), sys.argv[2]),))
    run_steps([step], folder, InstallProgress())
"""


def holder(folder: Path, seconds: float) -> "subprocess.Popen[bytes]":
    """Start another installer and return when its command runs."""
    process = subprocess.Popen(python(HOLD, str(folder), str(seconds)), stderr=subprocess.DEVNULL)
    until("the command of the other process", (folder / "held").exists)
    return process


def test_lock_of_killed_installer_lasts_until_its_command_ends(tmp_path: Path) -> None:
    other = holder(tmp_path, 1.0)
    other.kill()
    other.wait()
    with (
        pytest.raises(HpcDynamoError, match="was not free"),
        exclusive_lock(tmp_path, InstallProgress(), 0.1),
    ):
        pass
    with exclusive_lock(tmp_path, InstallProgress(), 20):
        pass


def test_second_installer_waits_for_first(tmp_path: Path) -> None:
    other = holder(tmp_path, 0.5)
    with exclusive_lock(tmp_path, InstallProgress(), 20):
        assert (tmp_path / "hold.done").exists(), "the other one was not finished"
    assert other.wait(timeout=HANG_S) == 0
