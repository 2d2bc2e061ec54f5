"""Input file of a batch: checked as a whole before anything starts, then read line by line.

Lines have OpenAI's batch request format (`custom_id`, `method`, `url`, `body`;
platform.openai.com/docs/guides/batch) or a plain body with `prompt` or `messages`.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hpc_dynamo.engines.http_paths import is_inference
from hpc_dynamo.errors import InputError
from hpc_dynamo.json_reader import JsonError, is_text, read_fields, read_value

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
EXAMPLE_PATHS = f"{CHAT}, {COMPLETIONS}, /v1/embeddings, /v1/score or /v1/rerank"
MAX_PROBLEMS_SHOWN = 20  # per error message
BLOCK_BYTES = 1 << 20
MAX_LINE_BYTES = 256 << 20  # a file without newlines, such as a sparse one, fills no memory
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class RequestEntry:
    """One request of the file: its id, and the position of its line in bytes."""

    custom_id: str
    offset: int
    size: int


@dataclass(frozen=True)
class BatchInput:
    """A checked input file. `fingerprint` is the SHA-256 of its bytes."""

    file: Path
    entries: tuple[RequestEntry, ...]
    fingerprint: str

    def open(self) -> "RequestReader":
        return RequestReader(self.file)


class RequestReader:
    """Reads requests of a checked file. Keeps it open, because opening is slow on NFS."""

    def __init__(self, file: Path) -> None:
        self._file, self._handle = file, os.open(file, os.O_RDONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._handle)

    def read(self, entry: RequestEntry) -> tuple[str, dict[str, Any]]:
        """Return the URL path and the body of a request, with values as in the file.

        Raises InputError if the file was changed in place since it was checked.
        """
        try:
            return self._parse(entry)
        except (JsonError, KeyError) as e:
            number = self._line_number(entry.offset)
            what = f"{self._file}:{number}: this line was changed while the batch runs: {e}"
            hint = "restore the file and run the same command again to resume"
            raise InputError(what, hint=hint) from e

    def _line_number(self, offset: int) -> int:
        blocks = (
            (start, min(BLOCK_BYTES, offset - start)) for start in range(0, offset, BLOCK_BYTES)
        )
        return 1 + sum(os.pread(self._handle, n, start).count(b"\n") for start, n in blocks)

    def _parse(self, entry: RequestEntry) -> tuple[str, dict[str, Any]]:
        fields = read_fields(os.pread(self._handle, entry.size, entry.offset))
        if "custom_id" in fields and read_value(bytes(fields["custom_id"])) != entry.custom_id:
            raise JsonError(f"custom_id is no longer {entry.custom_id!r}")
        if "body" in fields:
            return read_value(bytes(fields["url"])), {**read_fields(bytes(fields["body"]))}
        body = {name: value for name, value in fields.items() if name != "custom_id"}
        return CHAT if "messages" in body else COMPLETIONS, body


def read_input(file: Path) -> BatchInput:
    """Check every line. Raises InputError with `file:line: reason` for each invalid one."""
    if not file.is_file():
        what = f"input={file}: no such file" if not file.exists() else f"input={file}: not a file"
        raise InputError(what, hint="input=prompts.jsonl, with one request per line")
    digest, entries, seen = hashlib.sha256(), list[RequestEntry](), dict[str, int]()
    problems = list[str]()
    for number, offset, raw in _lines(file):
        digest.update(raw)
        line = raw.removeprefix(BOM) if number == 1 else raw
        if not line.strip():
            continue
        try:
            custom_id, _, _ = _parse(line, number)
            if custom_id in seen:
                raise InputError(f"custom_id {custom_id!r} is also on line {seen[custom_id]}")
        except InputError as e:
            problems.append(f"{file}:{number}: {e.message}")
            continue
        seen[custom_id] = number
        entries.append(RequestEntry(custom_id, offset + len(raw) - len(line), len(line)))
    if problems:
        raise InputError(_summary(problems), hint="correct these lines; nothing was started")
    if not entries:
        raise InputError(f"input={file} contains no request", hint="a JSON object on each line")
    return BatchInput(file, tuple(entries), digest.hexdigest())


def _lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number of each line, from 1, its offset, and its bytes with the newline.

    Raises InputError for a line above MAX_LINE_BYTES.
    """
    offset, number = 0, 0
    with file.open("rb") as stream:
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                what = f"{file}:{number}: this line has more than {MAX_LINE_BYTES >> 20} MiB"
                raise InputError(what, hint="one request per line")
            yield number, offset, raw
            offset += len(raw)


def _summary(problems: list[str]) -> str:
    more = len(problems) - MAX_PROBLEMS_SHOWN
    tail = [f"… and {more} more"] if more > 0 else []
    head = f"{len(problems)} lines of the input cannot be used:"
    return "\n".join([head, *problems[:MAX_PROBLEMS_SHOWN], *tail])


def _parse(line: bytes, number: int) -> tuple[str, str, dict[str, Any]]:
    """Return id, URL path and body of a line. Raises InputError with the reason."""
    try:
        value = read_value(line)
    except JsonError as e:
        raise InputError(f"not JSON: {e}") from e
    if not isinstance(value, dict):
        raise InputError(f"a JSON object is needed, not {type(value).__name__}")
    custom_id = value.get("custom_id", f"line-{number}")
    if not isinstance(custom_id, str) or not custom_id:
        raise InputError("custom_id must be a non-empty string")
    path, body = _batch_line(value) if "body" in value or "url" in value else _plain_line(value)
    if body.get("stream"):
        raise InputError("stream=true is not supported in a batch")
    if not is_text(custom_id):
        raise InputError("custom_id contains half a surrogate pair")
    return custom_id, path, body


def _batch_line(value: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    path, body = value.get("url"), value.get("body")
    if value.get("method", "POST") != "POST":
        raise InputError(f"method must be POST, not {value['method']!r}")
    if not isinstance(path, str) or not is_inference(path):
        raise InputError(f"url must be a path for inference such as {EXAMPLE_PATHS}, not {path!r}")
    if not isinstance(body, dict):
        raise InputError("body must be a JSON object")
    return path, body


def _plain_line(value: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    body = {k: v for k, v in value.items() if k != "custom_id"}
    if "messages" in body:
        return CHAT, body
    if "prompt" in body:
        return COMPLETIONS, body
    raise InputError('needs "prompt", "messages", or "url" and "body"')
