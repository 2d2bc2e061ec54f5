"""Failures that the options of the simulator inject into requests on arrival."""

import os
import random
import signal
from dataclasses import dataclass

from hpc_dynamo.http import HttpRequest
from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.bad_answers import BadAnswer
from hpc_dynamo.simulator.scheduler import Scheduler


@dataclass(frozen=True)
class InjectedFailures:
    """Failures of requests on arrival. See SchedulerLimits for failures during generation."""

    after_requests: int | None = None  # SIGKILL at the request after this many
    request_rate: float = 0.0  # share of requests with status 500
    seed: int = 0
    text: bytes = b""  # SIGKILL at a body that contains this text
    hang_after: int | None = None  # compute nothing more after this many requests
    bad_answer: BadAnswer | None = None  # instead of an output
    bad_after: int = 1  # requests that are answered well before


class FailureInjector:
    """Counts the requests and makes those fail that `InjectedFailures` selects."""

    def __init__(self, failures: InjectedFailures, scheduler: Scheduler) -> None:
        self._failures, self._scheduler = failures, scheduler
        self._random = random.Random(failures.seed)
        self._received = 0

    def count(self, request: HttpRequest) -> None:
        """Count a request, which may end or hang this engine. Raises RequestRejected."""
        self._received += 1
        failures = self._failures
        if failures.hang_after is not None and self._received > failures.hang_after:
            self._scheduler.hang()
        limit = failures.after_requests
        exceeded = limit is not None and self._received > limit
        if exceeded or (failures.text and failures.text in request.body):
            os.kill(os.getpid(), signal.SIGKILL)
        if failures.request_rate and self._random.random() < failures.request_rate:
            raise RequestRejected("injected by --fail-request-rate", status=500)

    @property
    def bad_answer(self) -> BadAnswer | None:
        """Return what the counted request gets instead of an output, if anything."""
        return self._failures.bad_answer if self._received > self._failures.bad_after else None
