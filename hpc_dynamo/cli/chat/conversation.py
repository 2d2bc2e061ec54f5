"""Conversation with a model: its history, and the streamed answers on the screen."""

import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from hpc_dynamo.cli.chat.client import ChatClient
from hpc_dynamo.cli.render.console import SafeConsole
from hpc_dynamo.printable import escape_controls

OUT = SafeConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)


@dataclass
class Conversation:
    """Messages so far, and the settings of the next request."""

    client: ChatClient
    model: str
    options: dict[str, Any]
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        """Return the body of the next request."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return {
            "model": self.model,
            "messages": [*opening, *self.turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }

    def send(self, message: str) -> None:
        """Send a message and print the answer while it arrives.

        A partial answer stays in the history. A message without any answer is removed.
        """
        self.turns.append({"role": "user", "content": message})
        answer = StreamedAnswer()
        try:
            with closing(self.client.stream(self.body())) as chunks:
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
    """Prints one answer while it arrives."""

    def __init__(self) -> None:
        self.text = ""
        self._sent_at = self._first_at = self._last_at = time.monotonic()
        self._tokens, self._started, self._thinking = 0, False, False

    def add_chunk(self, chunk: dict[str, Any]) -> None:
        usage = chunk.get("usage") or {}
        self._tokens = max(usage.get("completion_tokens", 0), self._tokens)
        for choice in chunk.get("choices", ()):
            delta = choice.get("delta", {})
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            self._receive(thought, delta.get("content") or "")

    def _receive(self, thought: str, text: str) -> None:
        if not (thought or text):
            return
        self._last_at = time.monotonic()
        if not self._started:
            self._first_at, self._started = self._last_at, True
        self.text += text
        if sys.stdout.isatty():
            self._show(thought.replace("\r", ""), escape_controls(text.replace("\r", "")))
        else:
            print(text, end="", flush=True)

    def _show(self, thought: str, text: str) -> None:
        """Print thoughts dimmed and separate from the answer."""
        OUT.print(thought, style="dim", end="")
        if text and self._thinking:
            OUT.print("\n")
        self._thinking = bool(thought) or (self._thinking and not text)
        print(text, end="", flush=True)

    def end(self) -> None:
        if self._started:
            print()

    def print_speed(self) -> None:
        """Print time to first token and tokens/s, on a terminal only."""
        if not (sys.stdout.isatty() and self._started):
            return
        seconds = self._last_at - self._first_at
        rate = f", {(self._tokens - 1) / seconds:.1f} tokens/s" if seconds > 0 else ""
        first_ms = 1000 * (self._first_at - self._sent_at)
        OUT.print(f"TTFT {first_ms:.0f} ms, {self._tokens} tokens{rate}", style="dim")
