"""Last screen of the demo: the commands to try next."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PAGE = "docs/getting-started/first-run.md"


def next_steps(engine: Sequence[str]) -> Iterator[str]:
    """Yield lines with commands to paste. `engine` are the overrides that select the demo's engine.

    The first command activates the environment of this Python, unless it is active.
    """
    yield "Next, in this shell:"
    program = Path(sys.prefix) / "bin"
    if str(program) not in os.environ.get("PATH", "").split(os.pathsep):
        yield f"  source {shlex.quote(_short(program / 'activate'))}"
    settings = " ".join(map(shlex.quote, (*engine, "cluster=local")))
    yield f"  hpc-dynamo serve name=mine {settings}"
    yield 'In a second shell, also activated: hpc-dynamo chat name=mine "Why is the sky blue?"'
    yield f"Your own prompts: hpc-dynamo batch input=prompts.jsonl {settings}"
    yield f"All verbs: hpc-dynamo --help. Batch, endpoint and cluster in ten minutes: {PAGE}"


def _short(path: Path) -> str:
    """Return the path from the current folder, if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
