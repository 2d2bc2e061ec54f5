"""Explanations of Slurm's pending reasons and of final job states."""

import datetime

import pytest

from hpc_dynamo.launch.reasons import (
    NEVER_RAN,
    StartChance,
    explain_end,
    explain_pending,
    find_reason,
)

NOW = datetime.datetime(2026, 3, 1, 12, 0).timestamp()

NEVER = [
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "PartitionConfig",
    "BadConstraints",
    "Constraints",
    "JobHeldUser",
    "JobHeldAdmin",
    "JobHoldMaxRequeue",
    "InvalidAccount",
    "InvalidQOS",
    "QOSNotAllowed",
    "AccountNotAllowed",
    "AccountingPolicy",
    "DependencyNeverSatisfied",
    "ReservationDeleted",
    "ReservationInvalid",
    "DeadLine",
    "MaxMemPerLimit",
    "QOSMaxWallDurationPerJobLimit",
    "AssocMaxWallDurationPerJobLimit",
    "QOSMaxCpuPerJobLimit",
    "QOSMaxNodePerJobLimit",
    "QOSMaxGRESPerJob",
    "AssocMaxGRESPerNode",
    "AssocMaxCpuPerJobLimit",
    "QOSMinGRES",
    "QOSMinCpuNotSatisfied",
    "QOSMaxGRESMinutesPerJob",
    "AssocGrpCPUMinutesLimit",
    "QOSGrpGRESMinutes",
    "QOSGrpBillingMinutes",
    "AssocGrpBillingRunMinutes",
    "QOSTimeLimit",
    "AssociationTimeLimit",
    "launch_failed_requeued_held",
    "job_requeued_in_held_state",
    "JobLaunchFailure",
    "SystemFailure",
]

LIMITED = [
    "ReqNodeNotAvail",
    "PartitionDown",
    "PartitionInactive",
    "NodeDown",
    "AssocGrpGRES",
    "AssocGrpNodeLimit",
    "AssocGrpCpuLimit",
    "QOSGrpNodeLimit",
    "QOSGrpGRES",
    "QOSMaxJobsPerUserLimit",
    "QOSMaxGRESPerUser",
    "QOSMaxNodePerUserLimit",
    "AssocMaxJobsLimit",
    "MaxGRESPerAccount",
    "MaxJobsPerAccount",
    "AssociationJobLimit",
    "QOSJobLimit",
    "QOSResourceLimit",
    "QOSUsageThreshold",
    "QOSMaxSubmitJobPerUserLimit",
]

WAITS = [
    "None",
    "Priority",
    "Resources",
    "Dependency",
    "BeginTime",
    "Licenses",
    "Reservation",
    "Prolog",
    "Cleaning",
    "SchedDefer",
    "JobArrayTaskLimit",
    "BurstBufferResources",
    "BurstBufferStageIn",
]


@pytest.mark.parametrize(
    ("names", "chance"),
    [(NEVER, StartChance.never), (LIMITED, StartChance.limited), (WAITS, StartChance.waits)],
    ids=["never", "limited", "waits"],
)
def test_reasons_have_expected_start_chance(names: list[str], chance: StartChance) -> None:
    found = {name: find_reason(name) for name in names}
    wrong = [
        name for name, reason in found.items() if reason is None or reason.start_chance != chance
    ]
    assert wrong == []


@pytest.mark.parametrize("name", [*NEVER, *LIMITED, *WAITS, "SomethingNew"])
def test_pending_line_names_reason_once(name: str) -> None:
    said = explain_pending("PENDING", name, "42")
    assert said.count(name) == (name != "None")
    assert "pending" not in said
    assert "None" not in said
    assert "JOB" not in said.replace("JOB_", "")


def test_job_that_cannot_start_gets_a_remedy() -> None:
    said = explain_pending("PENDING", "PartitionNodeLimit", "42", "2026-03-02T12:00:00", NOW)
    assert said.startswith("cannot start: the partition does not allow so many nodes")
    assert "(PartitionNodeLimit); try: fewer topology.nodes" in said
    assert "expects" not in said, "Slurm estimates a start for some that never start"
    assert "`scontrol release 42`" in explain_pending("PENDING", "JobHeldUser", "42")


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ("2026-03-01T14:05:00", "; Slurm expects to start it at 14:05"),
        ("2026-03-03T02:00:00", "; Slurm expects to start it at 02:00 on Tue 03 Mar"),
        ("2026-03-01T11:00:00", ""),
        ("N/A", ""),
        ("Unknown", ""),
        ("", ""),
    ],
)
def test_pending_line_shows_expected_start(start: str, said: str) -> None:
    expected = f"it is next; nodes have to become free (Resources){said}"
    assert explain_pending("PENDING", "Resources", "42", start, NOW) == expected


def test_unavailable_nodes_are_explained() -> None:
    for name in ("ReqNodeNotAvail,_UnavailableNodes:n[1-3]", "ReqNodeNotAvail, Reserved"):
        assert "down, drained or reserved" in explain_pending("PENDING", name, "42")
    words = "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved"
    assert "`sinfo -R`" in explain_pending("PENDING", words, "42")


def test_other_waiting_states_are_explained() -> None:
    assert explain_pending("CONFIGURING", "None", "42") == "its nodes are being booted or prepared"
    assert "scontrol resume 42" in explain_pending("SUSPENDED", "None", "42")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("JobState=CANCELLED Reason=Resources RunTime=00:00:00 NodeList=(null)", NEVER_RAN),
        ("JobState=CANCELLED RunTime=00:00:00 NodeList=", NEVER_RAN),
        ("JobState=CANCELLED RunTime=00:01:00 NodeList=n1", "it was cancelled (JobState=CANCELLED"),
        (
            "JobState=TIMEOUT RunTime=01:00:00 NodeList=n1",
            "its walltime was over (JobState=",
        ),
        ("JobState=OUT_OF_MEMORY NodeList=n1", "it used more memory than it requested"),
        ("JobState=NODE_FAIL NodeList=n1", "a node failed"),
        ("JobState=SPECIAL_EXIT NodeList=n1", "JobState=SPECIAL_EXIT"),
    ],
)
def test_final_states_are_explained(fields: str, said: str) -> None:
    pairs = dict(field.split("=", 1) for field in fields.split())
    assert explain_end(pairs).startswith(said)
