"""Check that an endpoint still belongs to its run, before a key and a prompt are sent there.

If all processes of a run are killed, its endpoint file stays, and another user can take the port.
"""

import logging
import shlex
import socket

from hpc_dynamo.errors import HpcDynamoError, LaunchError, MissingDependency
from hpc_dynamo.launch import JobState, find_job
from hpc_dynamo.messages import Endpoint
from hpc_dynamo.process.listeners import port_user
from hpc_dynamo.run import Attempt

log = logging.getLogger(__name__)


def require_live_endpoint(attempt: Attempt, endpoint: Endpoint) -> None:
    """Raise HpcDynamoError if the run does not have the port of its endpoint any more.

    On the node of the endpoint this is checked at its port, elsewhere at the job's state. A state
    that cannot be found out is accepted.
    """
    if found := _loss(attempt, endpoint):
        path = shlex.quote(str(attempt.run.path))
        what = f"the endpoint of {attempt.run.path} is gone: {found}"
        raise HpcDynamoError(what, hint=f"hpc-dynamo status {path}")


def _loss(attempt: Attempt, endpoint: Endpoint) -> str:
    """Return why the endpoint is gone; empty if it is not."""
    if endpoint.host == socket.gethostname():
        user = port_user(endpoint.address, endpoint.port)
        if user.other_user:
            return f"a process of user {user.other_user} listens on port {endpoint.port}"
        return "" if user.listening else f"no process listens on port {endpoint.port}"
    job = find_job(attempt)
    try:
        state, detail = job.state() if job else (JobState.unknown, "")
    except (LaunchError, MissingDependency) as e:
        log.warning("the state of the job is unknown: %s", e)
        return ""
    return "" if state in (JobState.running, JobState.unknown) else f"its job is {state} ({detail})"
