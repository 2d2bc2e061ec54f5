"""A conversation with a model: its history, and each answer on its way to the screen."""

import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from hpc_dynamo.cli.chat.client import ChatClient

OUT = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)

# What an answer may not do to a terminal: move the cursor, retitle the window and worse.
REMOVED_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


@dataclass
class Conversation:
    """What was said so far, and how to ask for more."""

    api: ChatClient
    model: str
    options: dict[str, Any]
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return {
            "model": self.model,
            "messages": [*opening, *self.turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }

    def send(self, message: str) -> None:
        """Ask, and print the answer as it comes.

        However it ends, what was heard stays in the history; a question without any answer does
        not.
        """
        self.turns.append({"role": "user", "content": message})
        answer = StreamedAnswer()
        try:
            with closing(self.api.stream(self.body())) as chunks:
                for chunk in chunks:
                    answer.add_chunk(chunk)
        finally:
            answer.end()
            self._remember(answer.text)
        answer.print_speed()

    def _remember(self, text: str) -> None:
        if text:
            self.turns.append({"role": "assistant", "content": text})
        else:
            self.turns.pop()


class StreamedAnswer:
    """One answer on its way to the screen."""

    def __init__(self) -> None:
        self.text = ""
        self._asked_at = self._first_at = self._last_at = time.monotonic()
        self._tokens, self._said, self._thinking = 0, False, False

    def add_chunk(self, chunk: dict[str, Any]) -> None:
        usage = chunk.get("usage") or {}
        self._tokens = max(usage.get("completion_tokens", 0), self._tokens)
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta", {})
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            self._receive(thought, delta.get("content") or "")

    def _receive(self, thought: str, said: str) -> None:
        if not (thought or said):
            return
        self._last_at = time.monotonic()
        if not self._said:
            self._first_at, self._said = self._last_at, True
        self.text += said
        if sys.stdout.isatty():
            self._show(thought.translate(REMOVED_CONTROLS), said.translate(REMOVED_CONTROLS))
        else:
            print(said, end="", flush=True)

    def _show(self, thought: str, said: str) -> None:
        """Thoughts are dim and apart from the answer."""
        OUT.print(thought, style="dim", end="")
        if said and self._thinking:
            OUT.print("\n")
        self._thinking = bool(thought) or (self._thinking and not said)
        print(said, end="", flush=True)

    def end(self) -> None:
        if self._said:
            print()

    def print_speed(self) -> None:
        """Time to the first token, and tokens a second after it; for people only."""
        if not (sys.stdout.isatty() and self._said):
            return
        seconds = self._last_at - self._first_at
        rate = f", {(self._tokens - 1) / seconds:.1f} tokens/s" if seconds > 0 else ""
        first_ms = 1000 * (self._first_at - self._asked_at)
        OUT.print(f"TTFT {first_ms:.0f} ms, {self._tokens} tokens{rate}", style="dim")
