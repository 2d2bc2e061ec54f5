"""The commands of the page "A file of prompts, an endpoint, your cluster" work when pasted."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import HANG_S, until

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/getting-started/first-run.md").read_text()
# No Slurm of this machine: on a laptop there is none.
PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin"


def blocks(section: str) -> list[str]:
    """Return the shell commands of one section of the page."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)


def paste(commands: str, cwd: Path) -> str:
    """Run the commands in one shell and return what they printed."""
    argv = ["bash", "-euo", "pipefail", "-c", commands]
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=os.environ | {"PATH": PATH},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_batch_section_answers_both_requests(tmp_path: Path) -> None:
    paste("\n".join(blocks("A file of prompts")), tmp_path)
    assert len((tmp_path / "runs/prompts/output.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_endpoint_section_serves_and_stops(tmp_path: Path) -> None:
    serve, *others = blocks("An endpoint")
    with subprocess.Popen(
        ["bash", "-c", serve],
        cwd=tmp_path,
        env=os.environ | {"PATH": PATH},
        stdout=subprocess.DEVNULL,
    ) as first_terminal:
        until("the URL is published", (tmp_path / "runs/afternoon/url").exists, 60)
        printed = paste("\n".join(others), tmp_path)
        assert '"object":"list"' in printed.replace(" ", ""), printed
        assert first_terminal.wait(30) == 0
