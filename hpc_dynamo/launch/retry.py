"""Another job for a run whose job could not start because of some of its nodes."""

import asyncio

from msgspec import structs

from hpc_dynamo.errors import LaunchError
from hpc_dynamo.launch import next_attempt
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Attempt


def submit_without(attempt: Attempt, outcome: Outcome) -> Outcome:
    """Submit the next attempt without the bad nodes of `outcome`, and return the outcome to write.

    Nothing is submitted if all nodes are bad, which is a fault of the configuration, or after
    `cluster.tries` jobs.
    """
    tries = attempt.config().cluster.tries
    if len(outcome.bad_hosts) >= attempt.plan().head_plan.nodes or _failed(attempt) + 1 >= tries:
        return outcome
    nodes = ",".join(outcome.bad_hosts)
    try:
        number = asyncio.run(next_attempt.submit_next_attempt(attempt, nodes)).number
    except LaunchError as e:
        return structs.replace(outcome, message=f"{outcome.message}; {e}")
    message = f"{outcome.message}\nattempt {number} starts without {nodes}"
    return structs.replace(outcome, message=message, next_attempt=number)


def _failed(attempt: Attempt) -> int:
    """Return the number of attempts in a row before this one that ended for bad nodes."""
    count = 0
    for earlier in reversed(attempt.run.attempts()):
        if earlier.number >= attempt.number:
            continue
        outcome = earlier.outcome()
        if outcome is None or not outcome.bad_hosts:
            break
        count += 1
    return count
