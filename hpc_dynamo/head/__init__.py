"""The head of a job: membership of agents and workers, the work, one ordered shutdown."""

from hpc_dynamo.head.head import Head

__all__ = ["Head"]
