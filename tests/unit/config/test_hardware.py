"""Nodes of several kinds: what is configured, laid out, asked of Slurm, and refused."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo import launch
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Config, Launcher, with_hardware
from hpc_dynamo.errors import ConfigError, LaunchError
from hpc_dynamo.launch import extra_jobs
from hpc_dynamo.launch.allocation_launcher import start_step
from hpc_dynamo.launch.node import het_component, node_index_and_hosts
from hpc_dynamo.launch.resources import group_configs, required_resources
from hpc_dynamo.launch.sbatch_script import submission_script
from hpc_dynamo.run import Attempt, Run
from hpc_dynamo.tasks import node
from hpc_dynamo.topology import NodeGroup, Plan, plan
from tests.support.runs import until
from tests.support.terminal import Call, printed, refused
from tests.unit.test_topology import drawn

KINDS = (
    *("cluster.hardware.h100.partition=fast", "cluster.hardware.h100.gpus_per_node=4"),
    *("cluster.hardware.l40s.partition=wide", "cluster.hardware.l40s.gpus_per_node=8"),
    *("topology.prefill.hardware=h100", "topology.decode.hardware=l40s"),
)
ON_CPUS = (*KINDS, "engine=simulator", "cluster.hardware.l40s.nodes=2")


def test_overrides_describe_kinds_without_a_plus() -> None:
    more = (
        "cluster.hardware.l40s.extra.mail-type=END",
        "cluster.hardware.l40s.memory_gb_per_node=9",
    )
    found = compose([*KINDS, *more]).cluster.hardware
    assert (found["h100"].partition, found["h100"].gpus_per_node) == ("fast", 4)
    assert found["l40s"].extra == {"mail-type": "END"}
    assert found["l40s"].memory_gb_per_node == 9.0


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["cluster.hardware.h100.partitoin=x"], "partitoin is not a field", "mean partition?"),
        (
            ["cluster.hardware.h100.gpus_per_node=many"],
            "h100.gpus_per_node=many: must be",
            "node=1",
        ),
        (["cluster.hardware.h100=8"], "h100=8: has fields of its own", "h100.FIELD=VALUE"),
        (["topology.decode.hardware=l40"], "'l40' is not known", "known: h100, l40s"),
        (["topology.nodes=3"], "topology.nodes=3 has no effect", "hardware.h100.nodes=3"),
        (["cluster.hardware.h100.nodes=0"], "h100.nodes=0 must be at least 1", "h100.nodes=1"),
        (["cluster.bootstrap.method=mpi"], "PMIx of Slurm fails", "bootstrap.method=tcp"),
        (["planner=load"], "different kinds cannot change their role", "planner=off"),
        (["cluster.hardware.h100.gpus_per_node=null"], "h100.gpus_per_node is not set", "=4"),
        (
            ["topology.decode.workers=9", "cluster.hardware.l40s.nodes=1"],
            "cluster.hardware.l40s.nodes=1 with cluster.hardware.l40s.gpus_per_node=8 gives 8 GPUs",
            "cluster.hardware.l40s.nodes=2",
        ),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(compose([*KINDS, *words]))
    assert said in error.value.message
    assert hint in error.value.hint


def test_unknown_hardware_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.hardware is empty"):
        plan(compose(["topology.decode.hardware=l40s", "cluster.gpus_per_node=4"]))


def test_what_a_kind_does_not_say_is_as_on_the_cluster() -> None:
    words = ("cluster.slurm.account=g42", "cluster.slurm.partition=gpu", "cluster.slurm.extra.a=b")
    config = compose([*KINDS, *words, "cluster.hardware.h100.extra.c=d"])
    there, own = with_hardware(config, "h100").cluster, with_hardware(config, "").cluster
    assert (there.slurm.account, there.slurm.partition) == ("g42", "fast")
    assert there.slurm.extra == {"a": "b", "c": "d"}
    assert own == config.cluster


UNEVEN = (
    *("topology.prefill.workers=2", "topology.prefill.tensor_parallel=2"),
    *("topology.decode.workers=3", "topology.decode.tensor_parallel=4"),
    "topology.decode.data_parallel=2",
)


def test_each_kind_is_laid_out_on_nodes_of_its_own() -> None:
    layout = plan(compose([*KINDS, *UNEVEN]))
    assert drawn(layout) == (
        "P0 0:01 | P1 0:23 | D2 1:01234567 | D3 2:01234567 | D4 3:01234567"
    )  # fmt: skip
    assert layout.node_groups == (NodeGroup("h100", 1, 4), NodeGroup("l40s", 3, 8))
    assert [layout.gpus_on(n) for n in range(4)] == [4, 8, 8, 8]
    prefill, decode = layout.group_plans
    assert (prefill.first_node, decode.first_node) == (0, 1)
    assert [w.rank for w in decode.workers] == [2, 3, 4]
    assert prefill.workers + decode.workers == layout.workers


def test_tp4dp4_with_tp16() -> None:
    """On nodes of 8 and of 4 GPUs, neither group with room for the other."""
    shapes = (
        *("topology.prefill.tensor_parallel=16", "topology.decode.tensor_parallel=4"),
        "topology.decode.data_parallel=4",
    )
    assert drawn(plan(compose([*KINDS, *shapes]))) == (
        "P0 0:0123+1:0123+2:0123+3:0123 | D1 4:01234567+5:01234567"
    )


def test_one_pool_may_stay_on_the_clusters_own_nodes() -> None:
    words = ("topology.prefill.hardware=", "topology.nodes=2", "cluster.gpus_per_node=1")
    layout = plan(compose([*KINDS, *words]))
    assert layout.node_groups == (NodeGroup("", 2, 1), NodeGroup("l40s", 1, 8))


def test_a_node_of_each_kind_gives_what_its_own_workers_need() -> None:
    config = compose([*KINDS, *UNEVEN, "engine.cpus=2", "cluster.hardware.h100.cpus_per_node=64"])
    prefill, decode = (required_resources(*each) for each in group_configs(config, plan(config)))
    assert (prefill.nodes, prefill.gpus, prefill.cpus) == (1, 4, 64)
    assert (decode.nodes, decode.gpus, decode.cpus) == (3, 8, 8 * 2 + 1)


# How they are asked for.

SBATCH = """#!/bin/sh
[ "$1" = --parsable ] && echo 42 && exit
echo "$SBATCH_NO_REQUEUE" >> {folder}/further
[ -e {folder}/refuse ] && echo 'sbatch: error: invalid partition' >&2 && exit 1
n=$(cat {folder}/count 2> /dev/null || echo 6)
echo $((n + 1)) > {folder}/count
echo Submitted batch job $((n + 1))
"""
PROGRAMS = {
    "sbatch": SBATCH,
    "scancel": '#!/bin/sh\necho "$@" >> {folder}/cancelled\n',
    "scontrol": "#!/bin/sh\necho SchedulerType = $(cat {folder}/scheduler)\n",
    "srun": '#!/bin/sh\n[ "$1" = --mpi=list ] && echo pmix || echo "$@" > {folder}/srun\n',
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of fake Slurm programs that record their arguments. The first job is 7."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    (folder / "scheduler").write_text("sched/backfill")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def config_of(*words: str) -> Config:
    return replace(compose([*ON_CPUS, *words]), name="mix")


def submitted(run: Run, config: Config) -> tuple[Attempt, Plan]:
    layout = launch.with_submission_mode(Launcher.slurm, config, plan(config))
    attempt = run.new_attempt(config, layout)
    launch.start_attempt(Launcher.slurm, attempt, config, layout, node.main)
    return attempt, layout


def by_component(lines: Sequence[str]) -> list[dict[str, str]]:
    found = [dict[str, str]()]
    for line in lines:
        if line == "#SBATCH hetjob":
            found.append({})
        elif line.startswith("#SBATCH --"):
            option, _, value = line.removeprefix("#SBATCH --").partition("=")
            found[-1][option] = "".join(shlex.split(value))
    return found


def test_one_heterogeneous_job_with_one_step(run: Run, slurm: Path) -> None:
    setup = "cluster.slurm.setup=['module load x']"
    attempt, layout = submitted(run, config_of(setup, "topology.decode.workers=4"))
    assert not layout.separate_jobs
    job = attempt.job()
    assert job
    assert (job.launcher, job.job_id, job.hetero_job_ids) == ("slurm", "42", ())
    assert not (slurm / "further").exists()
    lines = (attempt.submitit / "hetjob.sbatch").read_text().splitlines()
    fast, wide = by_component(lines)
    assert (fast["partition"], fast["nodes"], fast["cpus-per-task"]) == ("fast", "1", "3")
    assert (wide["partition"], wide["nodes"], wide["cpus-per-task"]) == ("wide", "2", "3")
    assert (fast["signal"], wide["signal"]) == ("USR2@90", "USR2@90")
    assert fast["output"] == f"{attempt.submitit}/%j.log"
    assert "output" not in wide
    assert lines[-3] == "module load x"
    srun, *words = shlex.split(lines[-2])
    at = words.index(":")
    assert srun == "srun"
    assert {"--het-group=0", "--nodes=1", "--mpi=none", "--no-kill"} <= set(words[:at])
    assert {"--het-group=1", "--nodes=2", "--mpi=none", "--no-kill"} <= set(words[at:])
    assert words[-3:] == ["-m", "hpc_dynamo.tasks.node", str(attempt.path)] == words[at - 3 : at]


def test_jobs_where_the_scheduler_starts_no_heterogeneous_ones(run: Run, slurm: Path) -> None:
    (slurm / "scheduler").write_text("sched/builtin")
    attempt, layout = submitted(run, config_of())
    assert layout.separate_jobs
    job = attempt.job()
    assert job
    # The other job is submitted first, so that the head finds it.
    assert (job.job_id, job.hetero_job_ids) == ("8", ("7",))
    (own,) = attempt.submitit.glob("8_submission.sh")
    (further,) = attempt.extra_jobs()
    assert further.plan() == layout.group_plans[1]
    (script,) = further.submitit.glob("7_submission.sh")
    (fast,), (wide,) = (by_component(f.read_text().splitlines()) for f in (own, script))
    assert (fast["partition"], fast["nodes"]) == ("fast", "1")
    assert (wide["partition"], wide["nodes"], wide["job-name"]) == ("wide", "2", "hpc-dynamo-mix+1")
    assert (slurm / "further").read_text().split() == ["1"], "the head's own may be requeued"
    launch.find_job(attempt).stop()  # type: ignore[union-attr]  # there is one
    assert (slurm / "cancelled").read_text().splitlines() == ["8", "--state=PENDING 7"]


def test_all_jobs_or_none(run: Run, slurm: Path) -> None:
    config = config_of("cluster.slurm.heterogeneous=jobs")
    layout = launch.with_submission_mode(Launcher.slurm, config, plan(config))
    attempt = run.new_attempt(config, layout)
    program = slurm / "sbatch"
    program.write_text(program.read_text().replace("refuse ]", "count ]"))  # the second
    with pytest.raises(LaunchError, match="invalid partition"):
        launch.start_attempt(Launcher.slurm, attempt, config, layout, node.main)
    assert (slurm / "cancelled").read_text().splitlines() == ["7"]


def test_one_that_no_head_ever_saw_is_cancelled_with_the_run(run: Run, slurm: Path) -> None:
    attempt, _ = submitted(run, config_of("cluster.slurm.heterogeneous=jobs"))
    program = slurm / "squeue"
    program.write_text("#!/bin/sh\necho 'PENDING|Priority|N/A|'\n")
    program.chmod(0o755)
    extra_jobs.stop_leftover_jobs(attempt.extra_jobs(), heartbeat_timeout_s=30.0)
    assert (slurm / "cancelled").read_text().split() == ["7"]


def test_job_of_the_second_kind_counts_its_nodes_from_the_first_kinds(run: Run) -> None:
    config = compose(
        [
            *("engine=simulator", "cluster.hardware.west.partition=west"),
            *("cluster.hardware.west.nodes=2", "cluster.hardware.east.partition=east"),
            *("topology.prefill.workers=2", "topology.prefill.hardware=west"),
            "topology.decode.hardware=east",
        ]
    )
    layout = plan(config)
    _, second = layout.group_plans
    attempt = run.new_attempt(config, layout)
    text = submission_script(
        attempt.new_extra_job(second), with_hardware(config, second.hardware), second
    )
    assert "#SBATCH --partition=east\n" in text
    assert "#SBATCH --nodes=1\n" in text


def test_a_script_asks_for_one_job(call: Call) -> None:
    asked = ("plan", "--sbatch", *ON_CPUS)
    refused(
        call(*asked, "cluster.slurm.heterogeneous=jobs"),
        "one job",
        "cluster.slurm.heterogeneous=hetjob",
    )
    assert "#SBATCH hetjob" in printed(call(*asked))
    submitted = printed(call("plan", "--dry-run", "--verb", "serve", *ON_CPUS))
    assert "#SBATCH hetjob" in submitted
    assert "srun --het-group=0 " in submitted


def test_the_plan_shows_kinds(call: Call) -> None:
    out = printed(call("plan", *ON_CPUS))
    assert "1 l40s" in out
    assert "each node of l40s: 2 CPUs" in out


# In an allocation, or without Slurm.


def allocated(monkeypatch: pytest.MonkeyPatch, run: Run, **variables: str) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    config = config_of()
    layout = launch.with_submission_mode(Launcher.allocation, config, plan(config))
    attempt = run.new_attempt(config, layout)
    step = start_step(attempt, config, layout, "hpc_dynamo.tasks.node")
    until("the end of the step", lambda: step.state()[0] is launch.JobState.ended)


def test_a_heterogeneous_allocation_is_used(
    run: Run, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = {"JOB_NUM_NODES_HET_GROUP_0": "1", "JOB_NUM_NODES_HET_GROUP_1": "2"}
    cpus = {"JOB_CPUS_PER_NODE_HET_GROUP_0": "16", "JOB_CPUS_PER_NODE_HET_GROUP_1": "1(x2)"}
    allocated(monkeypatch, run, HET_SIZE="2", **nodes, **cpus)
    words = (slurm / "srun").read_text().split()
    at = words.index(":")
    assert {"--het-group=0", "--overlap", "--cpus-per-task=3"} <= set(words[:at])
    assert {"--het-group=1", "--overlap", "--cpus-per-task=1"} <= set(words[at:])


@pytest.mark.usefixtures("slurm")
def test_an_allocation_of_one_kind_is_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LaunchError, match="2 node groups, but this allocation has fewer") as error:
        allocated(monkeypatch, run, JOB_NUM_NODES="3")
    assert "salloc --nodes=1 --partition=fast : --nodes=2 --partition=wide" in error.value.hint


@pytest.mark.usefixtures("slurm")
def test_a_component_with_too_few_nodes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"JOB_NUM_NODES_HET_GROUP_0": "1", "JOB_NUM_NODES_HET_GROUP_1": "1"}
    with pytest.raises(LaunchError, match="has 1 nodes of kind l40s, the topology needs 2"):
        allocated(monkeypatch, run, HET_SIZE="2", **nodes)


def test_nodes_are_in_the_order_of_components(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node list of a step is sorted by name, not by component."""
    (slurm / "scontrol").write_text("#!/bin/sh\necho $3 | tr , '\\n'\n")
    monkeypatch.setenv("SLURM_NODEID", "2")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "a,b,c")
    monkeypatch.setenv("SLURMD_NODENAME", "a")
    assert (node_index_and_hosts(3), het_component()) == ((2, ["a", "b", "c"]), None)
    monkeypatch.setenv("SLURM_HET_SIZE", "2")
    monkeypatch.setenv("SLURM_JOB_NODELIST_HET_GROUP_0", "b,c,d")  # the step uses two of them
    monkeypatch.setenv("SLURM_JOB_NODELIST_HET_GROUP_1", "a")
    assert (node_index_and_hosts(3), het_component()) == ((2, ["b", "c", "a"]), 1)


def test_here_kinds_are_but_names() -> None:
    config = config_of("cluster.slurm.heterogeneous=jobs")
    assert not launch.with_submission_mode(Launcher.local, config, plan(config)).separate_jobs
    on_gpus = compose(KINDS)
    with pytest.raises(ConfigError, match="on this machine all would have the same GPUs"):
        launch.with_submission_mode(Launcher.local, on_gpus, plan(on_gpus))
