"""What two answers of an engine to the same request must have in common."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]

# Fields that differ between two runs of one request, or between one worker and two.
NAMES = {"id", "item_id", "call_id", "request_id", "kv_transfer_params"}
CONFIGURATION = {"system_fingerprint"}  # of vLLM: a hash that covers the KV connector
TIMES = {"created", "created_at", "completed_at"}
CACHED = {
    "input_tokens_details", "prompt_tokens_details",
    "cache_read_input_tokens", "cache_creation_input_tokens",
}  # fmt: skip
LAST_DIGITS = {"logprob", "token_logprobs"}
OF_EVENTS = {"sequence_number", "object", "obfuscation"}  # one for each event of a stream
IGNORED = NAMES | CONFIGURATION | TIMES | CACHED | LAST_DIGITS | OF_EVENTS

# Texts of which each event of a stream carries a part.
PARTS = {
    "arguments", "bytes", "content", "delta", "partial_json", "reasoning", "text", "token",
}  # fmt: skip


def batch_answers(run: Path) -> dict[str, Answer]:
    """Status and meaning of each answer of a finished batch, by its id."""
    lines = chain.from_iterable(
        (run / name).read_text().splitlines() for name in ("output.jsonl", "errors.jsonl")
    )
    rows = [json.loads(line) for line in lines]
    return {row["custom_id"]: _answer(row["response"]) for row in rows}


def _answer(response: Any) -> Answer:
    return comparable(response["status_code"], json.dumps(response["body"]).encode())


def comparable(status: int, content: bytes) -> Answer:
    """Status and meaning of an answer: how a stream is cut into events does not count."""
    text = content.decode()
    if text.startswith(("data:", "event:")):
        return status, _joined(_events(text))
    return status, _kept(json.loads(text))


def _kept(value: Any) -> Any:
    """The value without ignored fields. Numbers that are not whole are log-probabilities."""
    if isinstance(value, dict):
        return {name: _kept(inner) for name, inner in value.items() if name not in IGNORED}
    if isinstance(value, list):
        return [_kept(inner) for inner in value]
    return None if isinstance(value, float) else value


def _events(text: str) -> Iterator[Any]:
    for line in text.splitlines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def _joined(events: Iterator[Any]) -> dict[str, Any]:
    """By the path of each field: texts joined, and the last value of all else."""
    joined = dict[str, Any]()
    for event in events:
        for path, value in _leaves(_kept(event), str(event.get("type", ""))):
            joined[path] = joined.get(path, "") + value if _is_part(path, value) else value
    return joined


def _is_part(path: str, value: Any) -> bool:
    return isinstance(value, str) and path.rpartition(".")[2] in PARTS


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Scalars by their path; elements of a list by their `index`, where they have one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            index = inner.get("index", "") if isinstance(inner, dict) else ""
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
