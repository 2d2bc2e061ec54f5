"""Client that sends small requests to an endpoint while faults happen."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from hpc_dynamo.cli.chat.client import ChatClient
from hpc_dynamo.errors import HpcDynamoError

PROMPT = [{"role": "user", "content": "Count from one to ten."}]


@dataclass(frozen=True)
class ProbeResult:
    """Result of one request. Times are those of `time.monotonic`; `error` is empty if answered."""

    began_at: float
    ended_at: float
    error: str


class Probe:
    """Sends streamed requests at an interval, each in a thread of its own.

    `client` returns the client for the present address, which may change when the head restarts.
    """

    def __init__(self, client: Callable[[], ChatClient], model: str, interval_s: float) -> None:
        self._client, self._model, self._interval_s = client, model, interval_s
        self._stopped, self._requests = threading.Event(), list[threading.Thread]()
        self._main = threading.Thread(target=self._run, daemon=True)
        self.results = list[ProbeResult]()

    def __enter__(self) -> "Probe":
        self._main.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._main.join()

    def wait(self, timeout_s: float) -> None:
        """Wait until all requests have ended, at most `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        for request in self._requests:
            request.join(max(deadline - time.monotonic(), 0.0))

    @property
    def unanswered(self) -> int:
        """Return the number of requests that have not ended."""
        return sum(request.is_alive() for request in self._requests)

    def answered_after(self, moment: float) -> float | None:
        """Return when the first request that began after `moment` was answered."""
        ends = (r.ended_at for r in self.results if r.began_at >= moment and not r.error)
        return min(ends, default=None)

    def _run(self) -> None:
        while not self._stopped.is_set():
            request = threading.Thread(target=self._request, daemon=True)
            request.start()
            self._requests.append(request)
            self._stopped.wait(self._interval_s)

    def _request(self) -> None:
        began, error = time.monotonic(), ""
        body = {"model": self._model, "messages": PROMPT, "max_tokens": 32, "stream": True}
        try:
            for _ in self._client().stream(body):
                pass
        except (HpcDynamoError, OSError) as e:
            error = str(e).splitlines()[0]
        self.results.append(ProbeResult(began, time.monotonic(), error))
