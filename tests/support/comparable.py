"""Comparison of two responses of an engine to the same request."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

Answer = tuple[int, Any]

# Fields that differ between two runs of one request, or between one worker and two.
NAMES = {"id", "item_id", "call_id", "request_id", "kv_transfer_params"}
CONFIGURATION = {"system_fingerprint"}  # vLLM: a hash that covers the KV connector
TIMES = {"created", "created_at", "completed_at"}
CACHED = {
    "input_tokens_details", "prompt_tokens_details",
    "cache_read_input_tokens", "cache_creation_input_tokens",
}  # fmt: skip
LAST_DIGITS = {"logprob", "token_logprobs"}
OF_EVENTS = {"sequence_number", "object", "obfuscation"}  # differ between events of a stream
IGNORED = NAMES | CONFIGURATION | TIMES | CACHED | LAST_DIGITS | OF_EVENTS

# Texts that are split over the events of a stream.
PARTS = {
    "arguments", "bytes", "content", "delta", "partial_json", "reasoning", "text", "token",
}  # fmt: skip


def batch_answers(run: Path) -> dict[str, Answer]:
    """Return status and comparable content of each response of a finished batch, by id."""
    lines = chain.from_iterable(
        (run / name).read_text().splitlines() for name in ("output.jsonl", "errors.jsonl")
    )
    rows = [json.loads(line) for line in lines]
    return {row["custom_id"]: _answer(row["response"]) for row in rows}


def _answer(response: Any) -> Answer:
    return comparable(response["status_code"], json.dumps(response["body"]).encode())


def comparable(status: int, content: bytes) -> Answer:
    """Return status and comparable content. Event boundaries of a stream are ignored."""
    text = content.decode()
    if text.startswith(("data:", "event:")):
        return status, _joined(_events(text))
    return status, _kept(json.loads(text))


def _kept(value: Any) -> Any:
    """Return the value without ignored fields and without log-probabilities (floats)."""
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
    """Return fields of a stream by path: joined texts, and the last value of others."""
    joined = dict[str, Any]()
    for event in events:
        for path, value in _leaves(_kept(event), str(event.get("type", ""))):
            joined[path] = joined.get(path, "") + value if _is_part(path, value) else value
    return joined


def _is_part(path: str, value: Any) -> bool:
    return isinstance(value, str) and path.rpartition(".")[2] in PARTS


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield scalars by path. List elements with an `index` are named by it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for inner in value:
            index = inner.get("index", "") if isinstance(inner, dict) else ""
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, value
