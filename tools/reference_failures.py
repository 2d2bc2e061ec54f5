"""Reference page of the failures that the code recognizes, with the remedy that it prints."""

import re
from collections.abc import Iterable, Mapping

from hpc_dynamo.demo.steps import KNOWN_FAILURES as DEMO
from hpc_dynamo.engines import ENGINES
from hpc_dynamo.engines.containers import failures
from hpc_dynamo.engines.diagnostics import COMMON
from hpc_dynamo.launch.reasons import KNOWN as REASONS
from hpc_dynamo.launch.reasons import StartChance
from hpc_dynamo.launch.refusal import FIELDS

PAGE = "failures.md"
INTRODUCTION = """
# Known failures

hpc_dynamo recognizes these signs in logs and in Slurm's messages, and prints the remedy with the
error. [Troubleshooting](../operations/troubleshooting.md) shows where to look first.
"""
TITLES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION, "## All engines\n", _table(_signs(COMMON))]
    for name, title in TITLES.items():
        known = ENGINES[name].known_failures
        own = {sign: hint for sign, hint in known.items() if COMMON.get(sign) != hint}
        parts += [f"\n## {title}\n", _table(_signs(own))]
    parts += ["\n## Containers\n", _table(_signs(failures.KNOWN_FAILURES))]
    parts += ["\n## Installation of the demo\n", _table(_signs(DEMO))]
    parts += ["\n## Jobs that sbatch refuses\n", "The first sign that matches counts.\n"]
    parts.append(_table((f"`{_plain(pattern)}`", hint) for pattern, hint in FIELDS))
    held = [(f"`{name}`", f"{r.start_chance}: {r.meaning}", r.remedy) for name, r in REASONS.items()
            if r.start_chance is not StartChance.waits]  # fmt: skip
    parts += ["\n## Pending jobs that do not start\n"]
    parts.append(_table(held, "reason of squeue", "meaning", "try"))
    return "\n".join(parts)


def _signs(failures: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    return ((f"`{sign.strip()}`", hint) for sign, hint in failures.items())


def _plain(pattern: str) -> str:
    """Return a readable form of a pattern: alternatives as they are, character classes in full."""
    return re.sub(r"\[(\w)\w\]", r"\1", pattern).replace("|", " / ").replace("\\", "")


def _table(rows: Iterable[tuple[str, ...]], *heads: str) -> str:
    heads = heads or ("sign", "try")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
