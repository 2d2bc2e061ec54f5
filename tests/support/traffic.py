"""Clients that send small requests at a steady rate while a fault happens."""

import http.client
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.integration.serving.served import MODEL, Served
from tests.support.runs import until

TOKENS = 8
LAST_S = 90.0  # limit for requests that run at the end
TALK = [{"role": "user", "content": "Tell me about foxes."}]
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": TALK}),
    ("/v1/completions", {"prompt": "Tell me about foxes."}),
)


@dataclass(frozen=True)
class Answered:
    """Result of one request. Times are those of `time.monotonic`; `error` is empty if complete."""

    began_at: float
    ended_at: float
    error: str


class Traffic:
    """Requests at `rate_hz`, each in a thread of its own, until the block ends.

    `chance` draws the path of each request, and if it is a stream.
    """

    def __init__(
        self, served: Served, chance: random.Random, rate_hz: float = 10.0, model: str = MODEL
    ) -> None:
        self._served, self._chance, self._rate_hz, self._model = served, chance, rate_hz, model
        self._stopped, self._threads = threading.Event(), list[threading.Thread]()
        self._main = threading.Thread(target=self._run, daemon=True)
        self.results = list[Answered]()

    def __enter__(self) -> "Traffic":
        self._main.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop sending and wait for the open requests."""
        self._stopped.set()
        self._main.join()
        deadline = time.monotonic() + LAST_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def sent(self) -> int:
        return len(self._threads)

    @property
    def lost(self) -> int:
        """Return the number of requests that failed or did not end."""
        return self.sent - sum(not result.error for result in self.results)

    def errors(self) -> str:
        """Return the errors by frequency."""
        found = Counter(result.error for result in self.results if result.error)
        return "; ".join(f"{count} x {error}" for error, count in found.most_common())

    def answered_since(self, moment: float) -> bool:
        """Return True if a request that began after `moment` was answered."""
        return any(r.began_at >= moment and not r.error for r in self.results)

    def wait_for(self, answers: int) -> None:
        """Wait until so many requests have been answered."""
        until("answers", lambda: self.sent - self.lost >= answers)

    def _run(self) -> None:
        while not self._stopped.is_set():
            path, fields = self._chance.choice(KINDS)
            body = {"model": self._model, "max_tokens": TOKENS, "ignore_eos": True, **fields}
            body["stream"] = self._chance.random() < 0.5
            thread = threading.Thread(target=self._request, args=(path, body), daemon=True)
            thread.start()
            self._threads.append(thread)
            self._stopped.wait(1 / self._rate_hz)

    def _request(self, path: str, body: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            error = self._send(path, body)
        except (OSError, http.client.HTTPException, ValueError) as e:
            error = type(e).__name__
        self.results.append(Answered(began, time.monotonic(), error))

    def _send(self, path: str, body: dict[str, Any]) -> str:
        """Send a request; return why its answer is incomplete, or nothing."""
        reply = self._served.post(path, body)
        if reply.status != 200:
            return f"status {reply.status}: {reply.body.decode(errors='replace')[:200]}"
        if body["stream"]:
            whole = reply.body.count(b"data: [DONE]") == 1 and b'"error"' not in reply.body
            return "" if whole else f"stream: {reply.body[-200:].decode(errors='replace')}"
        tokens = json.loads(reply.body)["usage"]["completion_tokens"]
        return "" if tokens == TOKENS else f"{tokens} tokens"
