"""Candidates of shell completion for a partial command line."""

import os
from pathlib import Path

import pytest

from hpc_dynamo.cli.commands import VERBS
from hpc_dynamo.cli.completion.candidates import candidates, print_candidates, split_line
from tests.support.terminal import new_run


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, the newest is `second`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for at, name in enumerate(("first", "second")):
        attempt = new_run(tmp_path / "runs" / name)
        attempt.worker_log(at).write_text("")
        attempt.agent_log(0).write_text("")
        os.utime(attempt.run.path / "attempts", (at, at))
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "models").mkdir()


def found(*words: str) -> list[str]:
    return [text for text, _ in candidates(words)]


def test_first_word_is_a_verb() -> None:
    assert found("") == list(VERBS)
    assert found("st") == ["status", "stop"]
    assert found("--") == ["--help", "--version"]
    assert found("bogus", "") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("serve", "--"), ["--help", "--config-dir", "--detach", "--no-preflight"]),
        (("plan", "engine=vllm", "--s"), ["--sbatch", "--show"]),
        (("plan", "--verb", ""), ["batch", "serve", "profile"]),
        (("serve", "--config-dir", "mo"), ["models/"]),
        (("doctor", "--json", "pr"), ["prompts.jsonl"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
        (("help", "ex"), ["exit-codes"]),
    ],
)
def test_options_and_their_values(words: tuple[str, ...], expected: list[str]) -> None:
    assert found(*words) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("eng", ["engine.", "engine="]),
        ("topology.pre", ["topology.prefill."]),
        ("topology.prefill.tens", ["topology.prefill.tensor_parallel="]),
        ("cluster.slurm.part", ["cluster.slurm.partition="]),
        ("models.large.topology.pre", ["models.large.topology.prefill."]),
        ("cluster.hardware.h100.gpus", ["cluster.hardware.h100.gpus_per_node="]),
        ("topology=", ["topology=aggregated", "topology=disaggregated"]),
        ("engine=vl", ["engine=vllm", "engine=vllm-cpu"]),
        ("planner.mode=", ["planner.mode=off", "planner.mode=load", "planner.mode=sla"]),
        ("serve.port=", []),
        ("overwrite=", ["overwrite=true", "overwrite=false"]),
        ("input=pr", ["input=prompts.jsonl"]),
        ("model.path=mo", ["model.path=models/"]),
        ("recipe=llama-70b-2p2d-v", ["recipe=llama-70b-2p2d-vllm"]),
        ("bogus.", []),
        ("bogus=", []),
    ],
)
def test_overrides_are_completed_from_the_schema(word: str, expected: list[str]) -> None:
    assert found("serve", "name=x", word) == expected


def test_groups_of_the_users_folder_are_completed(tmp_path: Path) -> None:
    (tmp_path / "site" / "cluster").mkdir(parents=True)
    (tmp_path / "site" / "cluster" / "alps.yaml").touch()
    assert found("plan", "--config-dir", "site", "cluster=al") == ["cluster=alps"]


def test_runs_are_completed_newest_first() -> None:
    assert found("status", "") == ["second", "first", "name=", "runs_dir="]
    assert found("stop", "name=f") == ["name=first"]
    assert found("chat", "runs_dir=models", "f") == []
    assert found("report", "runs/") == ["runs/first/", "runs/second/"]


def test_logs_of_a_run_are_completed() -> None:
    assert found("logs", "first", "h") == ["head"]
    assert "0" in found("logs", "first", "")
    assert "1" in found("logs", "")


@pytest.mark.parametrize(
    ("line", "words", "quoted"),
    [
        ("x plan a=b", ["x", "plan", "a=b"], ""),
        ("x plan ", ["x", "plan", ""], ""),
        ("x chat 'a b", ["x", "chat", "a b"], "'"),
        (r"x a\ b", ["x", "a b"], ""),
    ],
)
def test_a_line_is_split_as_the_shell_does(line: str, words: list[str], quoted: str) -> None:
    assert split_line(line) == (words, quoted)


@pytest.mark.parametrize(
    ("breaks", "line", "expected"),
    [
        (" =:", "hpc-dynamo plan topology=agg", "aggregated \n"),
        (" ", "hpc-dynamo plan topology=agg", "topology=aggregated \n"),
        (" =:", "hpc-dynamo plan topology.pre", "topology.prefill.\n"),
        (" =:", "hpc-dynamo stop name=a", "a\\ b \n"),
    ],
)
def test_bash_gets_the_text_after_its_last_word_break(
    breaks: str, line: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new_run(tmp_path / "runs" / "a b")
    assert print_candidates(["bash", breaks, line]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("a$(touch x)", '"a', '"a\\$(touch x) "'),
        ('a`x`"\\', '"a', '"a\\`x\\`\\"\\\\ "'),
        ("a!x", '"a', ""),
        ("a$(x)", "'a", "'a$(x) '"),
        ("a'$(x)", "'a", ""),
        ("a$(x)!'", "a", "a\\$\\(x\\)\\!\\' "),
        ("a\n$(x)", "a", ""),
        ("a\x1b]0;x\x07", "'a", ""),
    ],
)
def test_names_of_folders_run_no_command(
    name: str, line: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / name / "attempts").mkdir(parents=True)
    assert print_candidates(["bash", " =:", f"hpc-dynamo status {line}"]) == 0
    quote = line.rstrip("a")
    printed = capsys.readouterr().out.rstrip("\n")
    assert (quote + printed + quote if printed else "") == expected


def test_runs_of_other_users_are_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert found("status", "") == ["name=", "runs_dir="]


def test_an_error_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_candidates(["zsh", "plan", "--config-dir", "none", "cluster="]) == 1
    assert capsys.readouterr() == ("", "")
