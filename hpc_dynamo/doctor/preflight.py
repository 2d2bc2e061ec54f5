"""The checks that take no time, run by every job before a model is loaded."""

from msgspec.structs import replace

from hpc_dynamo.config import Config
from hpc_dynamo.doctor.checks import PREFLIGHT_CHECKS, check_clock, run_checks
from hpc_dynamo.doctor.facts import planned_gpus, preflight_facts
from hpc_dynamo.doctor.records import FindingLevel
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.messages import Roster
from hpc_dynamo.topology import Plan


def preflight(config: Config, plan: Plan, node: int, address: str, host: str) -> tuple[str, ...]:
    """Faults of this node, as texts; none where `cluster.preflight` is off."""
    if not config.cluster.preflight:
        return ()
    facts = preflight_facts(config, planned_gpus(plan, node), address, host)
    return tuple(
        str(f) for f in run_checks(facts, PREFLIGHT_CHECKS) if f.level is FindingLevel.fault
    )


def raise_for_faults(roster: Roster, submitted_at: float, now: float) -> None:
    """Raises LaunchError where a node has a fault.

    Clocks are judged by order alone: who started before the submission, or after `now`, is off.
    """
    faults = [fault for node in roster.nodes for fault in node.faults]
    for node in roster.nodes:
        ahead_s = clock_error_s(node.started_at, submitted_at or node.started_at, now)
        if finding := check_clock(ahead_s):
            faults.append(str(replace(finding, host=node.host)))
    if faults:
        hint = "`hpc-dynamo doctor` with the same words tells more; --no-preflight goes on anyway"
        raise LaunchError("the nodes are not fit for this run:\n" + "\n".join(faults), hint=hint)


def clock_error_s(told_at: float, submitted_at: float, now: float) -> float:
    """How far a clock must be off that said `told_at` between two times of others; 0 if neither."""
    return max(told_at - now, 0.0) or min(told_at - submitted_at, 0.0)
