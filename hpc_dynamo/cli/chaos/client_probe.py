"""Probe of an endpoint: a client that sends small requests."""

import threading
import time
from collections.abc import Callable

from hpc_dynamo.cli.chaos.probe import Probe, ProbeResult
from hpc_dynamo.cli.chat.client import ChatClient
from hpc_dynamo.errors import HpcDynamoError

PROMPT = [{"role": "user", "content": "Count from one to ten."}]


class ClientProbe(Probe):
    """Sends streamed requests at an interval, each in a thread of its own.

    `client` returns the client for the present address, which may change when the head restarts.
    """

    def __init__(self, client: Callable[[], ChatClient], model: str, interval_s: float) -> None:
        super().__init__(interval_s)
        self._client, self._model = client, model
        self._requests = list[threading.Thread]()

    def wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        for request in self._requests:
            request.join(max(deadline - time.monotonic(), 0.0))

    @property
    def unanswered(self) -> int:
        return sum(request.is_alive() for request in self._requests)

    def _step(self) -> None:
        request = threading.Thread(target=self._request, daemon=True)
        request.start()
        self._requests.append(request)

    def _request(self) -> None:
        began, error = time.monotonic(), ""
        body = {"model": self._model, "messages": PROMPT, "max_tokens": 32, "stream": True}
        try:
            for _ in self._client().stream(body):
                pass
        except (HpcDynamoError, OSError) as e:
            error = str(e).splitlines()[0]
        self.results.append(ProbeResult(began, time.monotonic(), error))
