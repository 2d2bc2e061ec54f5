"""The prose check finds what it must find, and accepts plain English."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import prose

PLAIN = '''"""Queue of requests that wait for a worker."""


class Queue:
    """Requests in order of priority. At most `limit` of them."""

    limit: int  # requests

    def pop(self) -> str:
        """Remove and return the oldest request; raise LookupError if the queue is empty."""
        raise LookupError("the queue is empty: raise serve.max_queued_requests")
'''


def rules(name: str, source: str) -> list[str]:
    return [found.rule for found in prose.check(Path(name), source)]


def test_plain_english_has_no_findings() -> None:
    assert rules("hpc_dynamo/queue.py", PLAIN) == []
    assert rules("docs/a.md", "# Queue\n\nUsers who wait see `who waits` in the queue.\n") == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("The worker tells the head its load.", "tell"),
        ("Nobody waits.", "whoever"),
        ("The engine who has it.", "who"),
        ("Ours is faster.", "our"),
        ("Routed by load alone.", "alone"),
        ("A further job.", "further"),
        ("Where none has room, the request waits.", "where"),
        ("Tokens a second.", "per"),
        ("word " * 26, "long-sentence"),
    ],
)
def test_ruled_out_words_are_found_in_every_kind_of_text(text: str, rule: str) -> None:
    assert rule in rules("docs/a.md", text)
    assert rule in rules("docs/a.md", f"| cell | {text} |")
    assert rule in rules("conf/a.yaml", f"# {text}\nkey: 1\n")
    assert rule in rules("hpc_dynamo/a.py", f'"""Module.\n\n{text}"""\n')
    assert rule in rules("hpc_dynamo/a.py", f'"""Module."""\n\n# {text}\n')
    assert rule in rules("hpc_dynamo/a.py", f'"""Module."""\n\nprint(f"{{1}} {text}")\n')


def test_code_is_skipped() -> None:
    page = "```\nwho tells whom\n```\n\nThe field `told` and router.told, ours=1.\n"
    assert rules("docs/a.md", page) == []
    assert rules("tests/a.py", 'PROMPT = "tell me who is alone"\n') == []


def test_docstring_and_field_comment_with_fragment_are_found() -> None:
    assert rules("hpc_dynamo/a.py", '"""How a request waits."""\n') == ["first-word"]
    source = '"""Module."""\n\nx = 1  # of the prompt\n'
    assert rules("hpc_dynamo/a.py", source) == ["first-word-comment"]


def test_public_class_long_function_and_record_need_docstrings() -> None:
    body = "    x = 1\n" * 8
    source = (
        f'"""Module."""\n\nclass A:\n    x = 1\n\nclass _B(Struct):\n    x = 1\n\ndef f():\n{body}'
    )
    assert rules("hpc_dynamo/a.py", source) == ["missing-docstring"] * 3
    assert rules("tests/a.py", source) == []
    assert rules("hpc_dynamo/a.py", source.replace("class A", "class _A"))[1:] == [
        "missing-docstring"
    ]


def test_test_name_with_ruled_out_word_is_found() -> None:
    assert rules("tests/a.py", "def test_a_job_is_told() -> None:\n    pass\n") == ["test-name"]


def test_finding_names_the_line_and_the_suggestion() -> None:
    (found,) = prose.check(Path("docs/a.md"), "# Title\n\nOne line,\nthen beside it.\n")
    assert str(found).startswith('docs/a.md:4: [beside] found "beside"; write: next to')


def test_exception_needs_a_reason() -> None:
    page = "<!-- prose: ignore (a quotation) -->\nNobody waits.\n"
    assert rules("docs/a.md", page) == []
    assert "ignore" in rules("docs/a.md", page.replace(" (a quotation)", ""))


def test_command_fails_on_a_finding_and_passes_without(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    for text, code in (("Nobody waits.", 1), ("No request waits.", 0)):
        page.write_text(text)
        command = [sys.executable, prose.__file__, "a.md"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout + done.stderr
