"""The OpenAI endpoint: processes on the head node that share one port and the head's router.

`python -m hpc_dynamo.frontend` is started by the head, once for each process.
"""
