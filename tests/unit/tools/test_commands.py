"""Every command shown in docs/, the README and other pages passes the checks of its verb.

Conventions for pages: a word with `…` stands for more overrides or a value. The test drops it and
adds a model, the GPUs of a node and an input. A folder of `--config-dir` has the files that the
command selects. Other files that a command names exist. Code spans in the middle of a sentence name
a command without all of its overrides; only their verb and options are checked.
"""

import re
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo.cli.command_line import check_command_line
from hpc_dynamo.cli.commands import VERBS
from hpc_dynamo.cli.parser import verb_parser
from hpc_dynamo.timing_model import PROFILES
from tests.support.command_lines import shown_commands
from tests.unit.planner.modelled import measured

ROOT = Path(__file__).resolve().parents[3]
PAGES = [
    page
    for page in subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
    if (ROOT / page).exists()
]
BLOCK = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
JOB = ("model.path=/shared/models/llama-8b", "cluster.gpus_per_node=8")
MORE = {
    "batch": (*JOB, "input=prompts.jsonl"),
    **dict.fromkeys(("plan", "serve", "profile", "doctor", "simulate"), JOB),
    "route": ("--workers", "http://gpu1:8000"),
}
PROFILE = msgspec.json.encode(
    msgspec.structs.replace(measured(PROFILES["a100-8b"], byte_s=0.0), tensor_parallel=1)
)
SITE = {
    "cluster": "launcher: slurm\ngpus_per_node: 4\n",
    "recipe": (ROOT / "conf/recipe/llama-8b-vllm.yaml").read_text(),
}


def in_blocks(page: str, program: str = "hpc-dynamo") -> Iterator[list[str]]:
    """Yield the arguments of a program in the code blocks of a page."""
    for block in BLOCK.findall((ROOT / page).read_text()):
        yield from shown_commands(re.sub(r"^ *(\$ )?", "", block, flags=re.M), program)


def in_sentences(page: str, program: str = "hpc-dynamo") -> Iterator[list[str]]:
    """Yield the arguments of a program in code spans."""
    prose = BLOCK.sub("", (ROOT / page).read_text())
    for span in re.findall(rf"`({program} [^`]+)`", prose):
        yield from shown_commands(" ".join(span.split()), program)


def name(command: tuple[str, list[str]]) -> str:
    """Return the id of a test."""
    return f"{command[0]}: {' '.join(command[1])[:90]}"


def completed(words: list[str], folder: Path) -> list[str]:
    """Return the arguments without placeholders; write the files that they name."""
    kept = [word for word in words if "…" not in word]
    fields = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if kept != words and not ("--workers" in words or "--prefill" in words):
        # The hub's cache of this machine does not matter.
        offline = "engine.env.HF_HUB_OFFLINE" in fields
        more = (*MORE.get(words[0], ()), *(["cluster.preflight=false"] if offline else []))
        kept += [each for each in more if each.partition("=")[0] not in fields]
    if "--config-dir" in kept:
        kept[kept.index("--config-dir") + 1] = str(folder / "site")
        for group, text in SITE.items():
            (folder / "site" / group).mkdir(parents=True)
            (folder / "site" / group / f"{fields.get(group, 'any')}.yaml").write_text(text)
    if file := fields.get("planner.profile"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(PROFILE)
    return kept


SHOWN = [(page, words) for page in PAGES for words in in_blocks(page)]
NAMED = [(page, words) for page in PAGES for words in in_sentences(page)]


@pytest.mark.parametrize("command", SHOWN, ids=name)
def test_command_in_a_code_block_passes_the_checks_of_its_verb(
    command: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    check_command_line(completed(command[1], tmp_path))


@pytest.mark.parametrize("command", NAMED, ids=name)
def test_command_in_a_sentence_has_known_verb_and_options(command: tuple[str, list[str]]) -> None:
    verb, *words = command[1]
    known = verb_parser(verb).format_help() if verb in VERBS else "--version"
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(^|[\s,|]){option}\b", known), command


def test_make_targets_on_pages_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for page in PAGES:
        for words in in_blocks(page, "make"):
            named = {word for word in words if "=" not in word}
            assert named <= set(targets), f"{page}: make {' '.join(words)}"


def test_benchmarks_on_pages_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"python -m (benchmarks[\w.]*|tools[\w.]*)", (ROOT / page).read_text()
        ):
            assert find_spec(name.rstrip(".")), f"{page}: python -m {name}"
