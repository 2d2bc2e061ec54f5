"""Requests about documents: more documents than the device cache holds, in random order."""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

from tokenizers import Tokenizer

from benchmarks.common.workload import MODEL, corpus

ANSWER_TOKENS, QUESTION_TOKENS = 4, 24
REQUEST_S = 600.0


@dataclass(frozen=True)
class Sample:
    """One answered request."""

    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    text: str


class Documents:
    """Prompts of a document and a question, as token ids. Equal seeds give equal prompts."""

    def __init__(self, tokenizer: Path, count: int, tokens: int) -> None:
        self._draw = random.Random(1)
        self._ids = Tokenizer.from_file(str(tokenizer)).encode(" ".join(corpus())).ids
        self._documents = [self._cut(tokens) for _ in range(count)]

    def round(self, requests: int) -> list[list[int]]:
        """Return the prompts of one round: a random document and a new question each."""
        documents = self._draw.choices(self._documents, k=requests)
        return [document + self._cut(QUESTION_TOKENS) for document in documents]

    def all(self) -> list[list[int]]:
        """Return a prompt for each document."""
        return [document + self._cut(QUESTION_TOKENS) for document in self._documents]

    def _cut(self, tokens: int) -> list[int]:
        start = self._draw.randrange(len(self._ids) - tokens)
        return list(self._ids[start : start + tokens])


def ask(url: str, key: str, prompt: Sequence[int]) -> Sample:
    """Stream one greedy answer."""
    body = {
        "model": MODEL, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    began, ttft_s, pieces, usage = time.monotonic(), 0.0, list[str](), dict[str, object]()
    with urlopen(request, timeout=REQUEST_S) as stream:
        for line in stream:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices"):
                ttft_s = ttft_s or time.monotonic() - began
                pieces.append(event["choices"][0]["text"])
            usage = event.get("usage") or usage
    return _sample(ttft_s, usage, "".join(pieces))


def _sample(ttft_s: float, usage: dict[str, object], text: str) -> Sample:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    total = usage["prompt_tokens"]
    assert isinstance(total, int)
    return Sample(ttft_s, total, int(cached or 0), text)
