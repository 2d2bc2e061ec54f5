"""Explanations of Slurm's job reasons and states: why a job is pending, and how it ended.

Pure tables. The names of reasons are those of `squeue --format %r`
(src/common/job_state_reason.c of Slurm), those of states of `scontrol show job`.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

NEVER_RAN = "cancelled before it started"


class StartChance(StrEnum):
    """Chance of a pending job to start as it was submitted."""

    waits = "waits"
    # It starts when other jobs end, unless it exceeds the limit by itself.
    limited = "held back"
    never = "cannot start"


@dataclass(frozen=True)
class PendingReason:
    """One reason, explained for the user."""

    start_chance: StartChance
    meaning: str
    remedy: str = ""


def _waits(meaning: str) -> PendingReason:
    return PendingReason(StartChance.waits, meaning)


def _never(meaning: str, remedy: str) -> PendingReason:
    return PendingReason(StartChance.never, meaning, remedy)


SMALLER = "fewer nodes, CPUs, GPUs or less memory"
OTHER = "another cluster.slurm.partition"
SITE = "ask the site's support"
ACCOUNT = (
    "cluster.slurm.account and cluster.slurm.qos; `sacctmgr show assoc user=$USER` lists yours"
)

KNOWN = {
    "None": _waits("Slurm's scheduler has not looked at it yet"),
    "Priority": _waits("jobs of higher priority are before it"),
    "Resources": _waits("it is next; nodes have to become free"),
    "Dependency": _waits("a job that it depends on has not ended"),
    "BeginTime": _waits("its begin time has not come"),
    "Licenses": _waits("licenses have to become free"),
    "Reservation": _waits("its reservation has not begun"),
    "Prolog": _waits("its nodes are being prepared"),
    "Cleaning": _waits("its previous run is being cleaned up"),
    "SchedDefer": _waits("the scheduler looks at it later"),
    "JobArrayTaskLimit": _waits("other tasks of its array have to end"),
    "BurstBufferResources": _waits("burst buffer space has to become free"),
    "BurstBufferStageIn": _waits("data is copied to the burst buffer"),
    "PowerNotAvail": _waits("the cluster's power limit is reached"),
    "PowerReserved": _waits("power is reserved for other jobs"),
    "FedJobLock": _waits("another cluster of the federation decides about it"),
    "ReqNodeNotAvail": PendingReason(
        StartChance.limited,
        "nodes that it needs are down, drained or reserved, often for maintenance",
        "a shorter cluster.slurm.time, or fewer nodes; `scontrol show reservation`, `sinfo -R`",
    ),
    "NodeDown": PendingReason(StartChance.limited, "a node that it needs is down", "`sinfo -R`"),
    "FrontEndDown": PendingReason(StartChance.limited, "the cluster's front end is down", SITE),
    "PartitionDown": PendingReason(
        StartChance.limited, "its partition is down", f"`sinfo`, or {OTHER}"
    ),
    "PartitionInactive": PendingReason(
        StartChance.limited, "its partition is inactive", f"`sinfo`, or {OTHER}"
    ),
    "QOSUsageThreshold": PendingReason(
        StartChance.limited, "the QOS's usage threshold is reached", ACCOUNT
    ),
    "PartitionNodeLimit": _never(
        "the partition does not allow so many nodes, or fewer of them are up",
        f"fewer topology.nodes, or {OTHER}; `scontrol show partition`",
    ),
    "PartitionTimeLimit": _never(
        "its walltime is longer than the partition allows",
        f"a shorter cluster.slurm.time, or {OTHER}; `sinfo -o '%P %l'`",
    ),
    "PartitionConfig": _never(
        "the partition does not allow this job or has not what it requests",
        f"{SMALLER}, or {OTHER}; `scontrol show partition`",
    ),
    "BadConstraints": _never(
        "no node has all that it requests",
        f"cluster.slurm.constraint, cluster.slurm.gpu_type, {SMALLER}; `sinfo -o '%P %c %m %G %f'`",
    ),
    "JobHeldUser": _never("it is held", "`scontrol release JOB`"),
    "JobHeldAdmin": _never("an administrator holds it", SITE),
    "JobHoldMaxRequeue": _never("it was requeued too often, and is held", "`scontrol release JOB`"),
    "InvalidAccount": _never("its account is not valid", ACCOUNT),
    "InvalidQOS": _never("its QOS is not valid", ACCOUNT),
    "QOSNotAllowed": _never("its QOS is not allowed in this partition", ACCOUNT),
    "AccountNotAllowed": _never("its account is not allowed in this partition", ACCOUNT),
    "AccountingPolicy": _never("the site's accounting policy does not allow it", ACCOUNT),
    "DependencyNeverSatisfied": _never(
        "a job that it depends on failed", "cluster.slurm.extra.dependency"
    ),
    "ReservationDeleted": _never(
        "its reservation was deleted",
        "cluster.slurm.extra.reservation; `scontrol show reservation`",
    ),
    "DeadLine": _never("it cannot end before its deadline", "cluster.slurm.extra.deadline"),
    "MaxMemPerLimit": _never(
        "it requests more memory than a node or CPU may have here",
        "a smaller cluster.memory_gb_per_node",
    ),
    "JobLaunchFailure": _never("its launch failed, and it is held", "`scontrol release JOB`"),
    "SystemFailure": _never("a system failure on its nodes; it is held", SITE),
}
ALIASES = {
    "ReservationInvalid": "ReservationDeleted",
    "Constraints": "BadConstraints",
    "BurstBufferOperation": "SystemFailure",
    "NonZeroExitCode": "JobLaunchFailure",
    "RaisedSignal": "JobLaunchFailure",
    "OutOfMemory": "JobLaunchFailure",
    "TimeLimit": "JobLaunchFailure",
    "InactiveLimit": "JobLaunchFailure",
}

# Limits have too many names for a table; the first matching pattern counts.
LIMIT = "it is above a limit of its account, association or QOS"
LIMITS = (
    (
        r"(Assoc|QOS)Grp.*Minutes",
        _never("the budget of its account or QOS is used up", f"{ACCOUNT}, or a shorter time"),
    ),
    (r"(Assoc|QOS)Max.*WallDuration|(Association|QOS)TimeLimit", _never(
        "its walltime is longer than its account or QOS allows", "a shorter cluster.slurm.time"
    )),
    (r"QOSMin", _never("it requests less than its QOS demands", ACCOUNT)),
    (r"(Assoc|QOS)Max.*(PerJob|PerNode|PerJobLimit)$", _never(LIMIT, f"{SMALLER}; {ACCOUNT}")),
    (r"(Assoc|QOS)?Max|(Assoc|QOS)Grp|Association|QOS(Job|Resource)", PendingReason(
        StartChance.limited,
        "its user, account or QOS uses all that it may at once",
        "wait for other jobs to end; it cannot start if this job exceeds the limit by itself: "
        + ACCOUNT,
    )),
    (r"Nodes required for job are", KNOWN["ReqNodeNotAvail"]),
    (r"held", _never("it is held after a failure", "`scontrol release JOB`")),
)  # fmt: skip


def find_reason(name: str) -> PendingReason | None:
    """Return the reason that Slurm calls `name`; None if this table does not have it."""
    name = name.replace("_", " ")
    short = name.partition(",")[0].strip()
    short = ALIASES.get(short, short)
    if short in KNOWN:
        return KNOWN[short]
    return next((reason for pattern, reason in LIMITS if re.search(pattern, name)), None)


def explain_pending(
    state: str, name: str, job: str, start: str = "", now: float | None = None
) -> str:
    """Return one line for the user of a pending job: its reason, and its expected start.

    `state`, reason `name` and expected `start` are as squeue prints them.
    """
    if state == "CONFIGURING":
        return "its nodes are being booted or prepared"
    if state == "SUSPENDED":
        return f"suspended; try: `scontrol resume {job}`, or {SITE}"
    reason = find_reason(name)
    if reason is None:
        return f"Slurm's reason is {name}{_expected(start, now)}"
    called = "" if name == "None" else f" ({name})"
    text = f"{reason.meaning}{called}"
    if reason.start_chance is not StartChance.waits:
        text = f"{reason.start_chance}: {text}"
    if reason.start_chance is not StartChance.never:
        text += _expected(start, now)
    remedy = reason.remedy.replace("JOB", job)
    return f"{text}; try: {remedy}" if remedy else text


def _expected(start: str, now: float | None = None) -> str:
    """Return Slurm's estimate of the start, which it computes only for the next jobs."""
    try:
        at = datetime.fromisoformat(start)
    except ValueError:
        return ""
    today = datetime.fromtimestamp(time.time() if now is None else now)
    if at <= today:
        return ""
    near = at.date() == today.date()
    return f"; Slurm expects to start it at {at:%H:%M}" + ("" if near else f" on {at:%a %d %b}")


ENDED = {
    "BOOT_FAIL": "its nodes did not boot",
    "CANCELLED": "it was cancelled",
    "DEADLINE": "its deadline passed",
    "FAILED": "its script failed",
    "NODE_FAIL": "a node failed",
    "OUT_OF_MEMORY": "it used more memory than it requested",
    "PREEMPTED": "a job of higher priority took its nodes",
    "TIMEOUT": "its walltime was over",
}
SHOWN = ("JobState", "Reason", "ExitCode", "RunTime")


def explain_end(fields: Mapping[str, str]) -> str:
    """Describe in one phrase the fields of `scontrol show job`."""
    state = fields.get("JobState", "")
    if state == "CANCELLED" and _never_ran(fields):
        return NEVER_RAN
    shown = ", ".join(f"{name}={fields[name]}" for name in SHOWN if name in fields)
    known = ENDED.get(state)
    return f"{known} ({shown})" if known else shown


def _never_ran(fields: Mapping[str, str]) -> bool:
    without_nodes = fields.get("NodeList", "(null)") in ("", "(null)")
    return without_nodes and fields.get("RunTime", "") == "00:00:00"
