"""Text of others in logs and on terminals: control characters and length."""

import io
import logging
import sys

import pytest
from rich.table import Table
from rich.text import Text

from hpc_dynamo.cli.commands import logs
from hpc_dynamo.cli.render.console import UnlimitedConsole
from hpc_dynamo.printable import (
    MAX_MESSAGE_CHARS,
    MAX_TRACEBACK_CHARS,
    LineFormatter,
    escape_controls,
    terminal_line,
)

EVIL = "\x1b]0;pwn\x07\x9b2J\u202e\ud800\r\0A\tB"
ESCAPED = r"\x1b]0;pwn\x07\x9b2J\u202e\ud800\r\x00A" + "\tB"


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("a.b", logging.INFO, "f.py", 1, message, args, None)


def test_unsafe_characters_are_escaped_once() -> None:
    assert escape_controls(EVIL) == escape_controls(ESCAPED) == ESCAPED
    kept = "a\tb\nZürich \u4e2d \u05d0 \U0001f469\u200d\U0001f467 \\x1b"
    assert escape_controls(kept) == kept


def test_log_record_cannot_be_forged() -> None:
    text = LineFormatter().format(record("no field %s", f"{EVIL}\nINJECTED CRITICAL"))
    first, second = text.split("\n")
    assert first.endswith(f"INFO a.b: no field {ESCAPED}")
    assert second == "  INJECTED CRITICAL"


def test_log_record_is_bounded_and_keeps_its_end() -> None:
    text = LineFormatter("%(message)s").format(record("%s (the note)", "x" * 10_000_000))
    assert len(text) < MAX_MESSAGE_CHARS + 50
    assert text.endswith("xxx (the note)")
    assert " characters omitted] " in text


def test_traceback_is_indented_escaped_and_bounded() -> None:
    failed = record("failed")
    try:
        raise ValueError(EVIL + "\nINJECTED" + "y" * 1_000_000)
    except ValueError:
        failed.exc_info = sys.exc_info()
    for _ in range(2):  # logging caches the traceback for the next handler
        text = LineFormatter("%(message)s").format(failed)
        assert text.startswith("failed\n  Traceback (most recent call last):\n    File")
        assert "\n  INJECTED" in text
        assert ESCAPED in text
        assert len(text) < MAX_TRACEBACK_CHARS + 200


def test_consoles_escape_texts_but_not_their_own_codes() -> None:
    file = io.StringIO()
    console = UnlimitedConsole(
        file=file, force_terminal=True, color_system="standard", highlight=False
    )
    table = Table()
    table.add_column("last line of the log")
    table.add_row(Text("\x1b[2J cell"))
    console.print("[bold]own[/] \x1b]52;c;ZXZpbA==\x07 \x9b", table, "a\nb")
    shown = file.getvalue()
    assert "\x1b[1mown\x1b[0m \\x1b]52;c;" in shown
    assert "\\x1b[2J cell" in shown
    assert "a\nb" in shown
    assert "\x9b" not in shown
    assert "\x1b[2J" not in shown


def test_logs_are_escaped_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = " 0%\r 50%\r\x1b[0;36mhalf\x1b[0m \x1b[2J"
    assert terminal_line(line) == "half \\x1b[2J"
    logs._print_lines("head", [line])
    assert capsys.readouterr().out == f"      head | {line}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    logs._print_lines("head", [line])
    assert capsys.readouterr().out == "      head | half \\x1b[2J\n"
