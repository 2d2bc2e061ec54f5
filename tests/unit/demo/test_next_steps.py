"""Last screen of the demo."""

import os
import re
import sys
from pathlib import Path

import pytest

from hpc_dynamo.cli.command_line import check_command_line
from hpc_dynamo.demo.next_steps import PAGE, next_steps
from tests.support.command_lines import shown_commands


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Lines for an inactive environment in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    return "\n".join(next_steps(["engine=simulator"]))


def test_next_steps_pass_all_checks(shown: str) -> None:
    lines = re.sub(r"^[^:\n]*: (?=hpc-dynamo)", "", shown, flags=re.MULTILINE)
    commands = list(shown_commands(lines.replace("--help.", "--help #")))
    assert [words[0] for words in commands] == ["serve", "chat", "batch", "--help"]
    for words in commands[:-1]:
        check_command_line(words)


def test_next_steps_activate_an_inactive_environment(
    shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\n  source .venv/bin/activate\n" in shown
    monkeypatch.setenv("PATH", f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}")
    assert "source" not in "\n".join(next_steps([]))


def test_next_steps_name_an_existing_page() -> None:
    assert (Path(__file__).parents[3] / PAGE).is_file()
