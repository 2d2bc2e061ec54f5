"""Texts of files are shown as they are: brackets in them are no markup."""

import io
from pathlib import Path

from hpc_dynamo.cli.render.console import SafeConsole
from hpc_dynamo.cli.render.status import summary
from hpc_dynamo.config import Config
from hpc_dynamo.messages import BatchSummary, Progress, Roster
from hpc_dynamo.run import Run, Secrets, write_json
from hpc_dynamo.topology import Plan

TEXT = "[/x][link=http://example.com]"


def test_summary_shows_brackets_of_a_roster(tmp_path: Path) -> None:
    """The run may be of another user. A closing tag raised an error of rich."""
    run = Run(tmp_path / "run")
    run.create(Secrets(token="t", public="p", private="p"))
    attempt = run.new_attempt(Config(), Plan(workers=(), nodes=1, gpus_per_node=0))
    write_json(attempt.roster_file, Roster(nodes=(), method=TEXT, seconds=0.0))
    file = io.StringIO()
    shown = summary(attempt, BatchSummary(progress=Progress(), seconds=1.0))
    SafeConsole(file=file, width=200).print(shown)
    assert TEXT in file.getvalue()
