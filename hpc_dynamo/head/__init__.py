"""The head of a job: membership of agents and workers, the work, one ordered shutdown."""

from hpc_dynamo.head.head import Head
from hpc_dynamo.head.standalone import Standalone

__all__ = ["Head", "Standalone"]
