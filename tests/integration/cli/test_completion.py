"""Completion scripts in real shells: what Tab inserts."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pexpect  # type: ignore[import-untyped]  # it has no type information
import pytest

from hpc_dynamo.cli.completion.scripts import SCRIPTS
from tests.support.runs import HANG_S
from tests.support.terminal import Call, Process, new_run, printed

PROMPT = "READY> "
SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], f"PS1='{PROMPT}'; bind 'set bell-style none'"),
    "zsh": (["-f", "-i"], f"PS1='{PROMPT}'; autoload -Uz compinit; compinit -u -D"),
    "fish": (["--no-config", "-i"], f"function fish_prompt; printf '{PROMPT}'; end"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_script_is_printed(shell: str, call: Call) -> None:
    assert printed(call("completion", shell)) == SCRIPTS[shell]


def test_unknown_shell_is_a_usage_error(call: Call) -> None:
    done = call("completion", "tcsh")
    assert done.returncode == 2
    assert "invalid choice: 'tcsh'" in done.stderr


TYPED = {
    "hpc-dynamo prof": "profile",
    "hpc-dynamo serve topology=agg": "topology=aggregated",
    "hpc-dynamo serve topology.decode.tens": "topology.decode.tensor_parallel=",
    "hpc-dynamo serve --no-p": "--no-preflight",
    "hpc-dynamo status after": "afternoon",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_verbs_options_fields_values_and_runs(shell: str, tmp_path: Path) -> None:
    if not (program := shutil.which(shell)):
        pytest.skip(f"{shell} is not installed")
    new_run(tmp_path / "runs" / "afternoon")
    (tmp_path / "script").write_text(SCRIPTS[shell])
    with interactive(program, *SHELLS[shell], tmp_path) as process:
        for typed, completed in TYPED.items():
            process.send(f"{typed}\t")
            process.expect_exact(typed)
            process.send("\n")
            process.expect(r"((?:<[^>\r\n]*>)+)END")
            assert str(process.match[1]).strip("<>").split("><")[-1] == completed


@contextmanager
def interactive(program: str, options: Sequence[str], setup: str, cwd: Path) -> Iterator[Process]:
    """A shell with the completion script, and an `hpc-dynamo` that shows its arguments."""
    (cwd / "bin").mkdir()
    complete = f'[ "$1" = __complete ] && exec {Path(sys.executable).parent}/hpc-dynamo "$@"'
    stub = cwd / "bin" / "hpc-dynamo"
    stub.write_text(f"#!/bin/sh\n{complete}\nprintf '<%s>' \"$@\"; echo END\n")
    stub.chmod(0o755)
    env = {**os.environ, "PATH": f"{cwd}/bin:{os.environ['PATH']}", "TERM": "dumb"}
    process: Process = pexpect.spawn(
        program, list(options), cwd=str(cwd), env=env, encoding="utf-8", timeout=HANG_S,
        dimensions=(50, 200),
    )  # fmt: skip
    try:
        process.sendline(setup)
        process.sendline("source ./script; echo LOA''DED")
        process.expect_exact("LOADED")
        process.expect_exact(PROMPT)
        yield process
    finally:
        process.close(force=True)
