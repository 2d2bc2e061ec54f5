"""The configuration as one worker's engine sees it."""

from hpc_dynamo.config import Config
from hpc_dynamo.topology import Worker


def for_worker(config: Config, worker: Worker) -> Config:
    """That of its model."""
    return config.of(worker.model)
