"""Number of restarts that a worker has left."""

from hpc_dynamo.agent.engine_process import PortTaken
from hpc_dynamo.backoff import RestartLimit
from hpc_dynamo.config import Engine
from hpc_dynamo.errors import EngineError

MAX_TAKEN_PORTS = 10  # in a row


class WorkerRestarts:
    """Restarts of a worker within `engine.restart_window_min`.

    A start whose port was taken does not count, but MAX_TAKEN_PORTS of them in a row do.
    """

    def __init__(self, settings: Engine) -> None:
        self._limit = RestartLimit(settings.max_restarts, 60.0 * settings.restart_window_min)
        self._taken_ports = 0

    def failed(self, error: EngineError, now: float, was_ready: bool) -> int:
        """Count a failure; return the number of restarts left before this one, 0 if none is.

        `was_ready`: the worker had been ready after its last start.
        """
        if was_ready:
            self._limit.succeeded()
        if isinstance(error, PortTaken) and self._taken_ports < MAX_TAKEN_PORTS:
            self._taken_ports += 1
            return MAX_TAKEN_PORTS - self._taken_ports + 1
        self._taken_ports = 0
        return self._limit.failed(now)
