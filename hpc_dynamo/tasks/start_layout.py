"""Layout of a job at its start: spare nodes replace those that are missing or have a fault."""

import logging
import time
from collections.abc import Sequence

from hpc_dynamo.doctor.preflight import raise_for_faults, with_clock_faults
from hpc_dynamo.head.membership.spare_nodes import unfit_nodes
from hpc_dynamo.messages import Roster
from hpc_dynamo.run import Attempt, write_json
from hpc_dynamo.topology import Plan, replace_failed, with_replacements

log = logging.getLogger(__name__)


def start_layout(
    attempt: Attempt, roster: Roster, hosts: Sequence[str], *, is_head: bool
) -> tuple[Roster, Plan]:
    """Return the roster with all faults, and the layout. Raises LaunchError if too few nodes are
    fit.

    The agents of all nodes come to the same result, or else get that of the head.
    """
    plan, job = attempt.plan(), attempt.job()
    if attempt.config().cluster.preflight:
        found = with_clock_faults(roster, job.submitted_at if job else 0.0, time.time())
        if is_head and found != roster:
            write_json(attempt.roster_file, found)
        roster = found
    unfit = unfit_nodes(plan, roster)
    layout = with_replacements(plan, replace_failed(plan, {}, unfit))
    came = {record.node for record in roster.nodes}
    missing = [host for node, host in enumerate(hosts) if node not in came]
    if unfit & layout.head_plan.used_nodes:
        raise_for_faults(roster, missing)
    for record in roster.nodes:
        if record.faults and is_head:
            log.warning("%s runs no workers: %s", record.host, "; ".join(record.faults))
    if missing and is_head:
        log.warning("no agent came from %s, which runs no workers", ", ".join(missing))
    return roster, layout
