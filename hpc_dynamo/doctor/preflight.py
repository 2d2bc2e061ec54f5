"""The fast checks that every job runs before it loads a model."""

from msgspec.structs import replace

from hpc_dynamo.config import Config
from hpc_dynamo.doctor.checks import PREFLIGHT_CHECKS, check_clock, run_checks
from hpc_dynamo.doctor.facts import planned_gpus, preflight_facts
from hpc_dynamo.doctor.records import FindingLevel
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.messages import Roster
from hpc_dynamo.topology import Plan


def preflight(config: Config, plan: Plan, node: int, address: str, host: str) -> tuple[str, ...]:
    """Return the faults of this node as texts; none if `cluster.preflight` is off."""
    if not config.cluster.preflight:
        return ()
    facts = preflight_facts(config, planned_gpus(plan, node), address, host)
    found = run_checks(facts, PREFLIGHT_CHECKS)
    return tuple(str(finding) for finding in found if finding.level is FindingLevel.fault)


def raise_for_faults(roster: Roster, submitted_at: float, now: float) -> None:
    """Raise LaunchError if a node has a fault. Times are seconds since the epoch.

    Clocks are only compared by order: a node's start must lie between the submission and `now`.
    """
    faults = [fault for node in roster.nodes for fault in node.faults]
    bad_hosts = [node.host for node in roster.nodes if node.faults]
    for node in roster.nodes:
        ahead_s = clock_error_s(node.started_at, submitted_at or node.started_at, now)
        if finding := check_clock(ahead_s):
            faults.append(str(replace(finding, host=node.host)))
            bad_hosts.append(node.host)
    if faults:
        hint = "`hpc-dynamo doctor` with the same overrides; --no-preflight skips these checks"
        error = LaunchError("the nodes are not fit for this run:\n" + "\n".join(faults), hint=hint)
        error.bad_hosts = tuple(dict.fromkeys(bad_hosts))
        raise error


def clock_error_s(started_at: float, submitted_at: float, now: float) -> float:
    """Return the least error of the clock that showed `started_at`. Positive: it is ahead."""
    return max(started_at - now, 0.0) or min(started_at - submitted_at, 0.0)
