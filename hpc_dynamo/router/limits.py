"""What is bounded."""

import math
from dataclasses import dataclass
from typing import Self

from hpc_dynamo.config import Config, Task

# A worker whose connection broke is left alone until its agent reports it anew, or this long:
# with the usual three tries a request outlasts the time after which a silent agent is given up.
AVOID_S = 15.0


@dataclass(frozen=True)
class Limits:
    """Without limits nobody is refused and nobody waits but for a worker."""

    worker_requests: float = math.inf  # leases on one worker at a time
    queue: float = math.inf  # asks that wait
    queue_timeout_s: float = math.inf
    avoid_s: float = AVOID_S

    @classmethod
    def of(cls, config: Config) -> Self:
        """As a run's configuration wants them; a batch bounds itself."""
        if config.task is Task.batch:
            return cls()
        serve, engine = config.serve, config.engine
        return cls(
            worker_requests=serve.worker_requests or 2 * engine.max_num_seqs,
            queue=serve.queue,
            queue_timeout_s=serve.queue_timeout_s,
        )
