"""The fast checks that every job runs before it loads a model."""

from collections.abc import Sequence

from msgspec.structs import replace

from hpc_dynamo.config import Config
from hpc_dynamo.doctor.checks import PREFLIGHT_CHECKS, check_clock, run_checks
from hpc_dynamo.doctor.facts import planned_gpus, preflight_facts
from hpc_dynamo.doctor.records import FindingLevel
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.messages import NodeRecord, Roster
from hpc_dynamo.topology import Plan


def preflight(config: Config, plan: Plan, node: int, address: str, host: str) -> tuple[str, ...]:
    """Return the faults of this node as texts; none if `cluster.preflight` is off."""
    if not config.cluster.preflight:
        return ()
    facts = preflight_facts(config, planned_gpus(plan, node), address, host)
    found = run_checks(facts, PREFLIGHT_CHECKS)
    return tuple(str(finding) for finding in found if finding.level is FindingLevel.fault)


def with_clock_faults(roster: Roster, submitted_at: float, now: float) -> Roster:
    """Return the roster with faults of the nodes' clocks. Times are seconds since the epoch.

    Clocks are only compared by order: a node's start must lie between the submission and `now`.
    """
    return replace(roster, nodes=tuple(_with_clock(n, submitted_at, now) for n in roster.nodes))


def _with_clock(node: NodeRecord, submitted_at: float, now: float) -> NodeRecord:
    ahead_s = clock_error_s(node.started_at, submitted_at or node.started_at, now)
    finding = check_clock(ahead_s)
    if finding is None:
        return node
    return replace(node, faults=(*node.faults, str(replace(finding, host=node.host))))


def raise_for_faults(roster: Roster, missing_hosts: Sequence[str] = ()) -> None:
    """Raise LaunchError if a node has a fault."""
    faults = [fault for node in roster.nodes for fault in node.faults]
    if faults:
        hint = "`hpc-dynamo doctor` with the same overrides; --no-preflight skips these checks"
        error = LaunchError("the nodes are not fit for this run:\n" + "\n".join(faults), hint=hint)
        error.bad_hosts = (*(n.host for n in roster.nodes if n.faults), *missing_hosts)
        raise error


def clock_error_s(started_at: float, submitted_at: float, now: float) -> float:
    """Return the least error of the clock that showed `started_at`. Positive: it is ahead."""
    return max(started_at - now, 0.0) or min(started_at - submitted_at, 0.0)
