"""Agents of extra jobs, as real processes, and a head that may or may not expect them."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo import launch
from hpc_dynamo.cli.render import serving
from hpc_dynamo.config import (
    Bootstrap,
    Cluster,
    Config,
    Device,
    Engine,
    Hardware,
    Model,
    Planner,
    PlannerMode,
    Pool,
    Role,
    ScaleOut,
    Topology,
    TopologyKind,
)
from hpc_dynamo.errors import EngineError
from hpc_dynamo.head.membership.agents import Membership
from hpc_dynamo.head.scaling.hetero_jobs import HeterogeneousJobs
from hpc_dynamo.head.scaling.role_change import RoleChanger
from hpc_dynamo.head.scaling.scale_out import ScaleOutController
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import (
    ExtraJobState,
    ExtraJobStatus,
    JobRecord,
    NodeRecord,
    Outcome,
    Roster,
    Status,
    WorkerReport,
    WorkerState,
)
from hpc_dynamo.planner.signals import (
    CapacityGap,
    ExpectedLoad,
    PlannerDecision,
    Signals,
    TargetSplit,
)
from hpc_dynamo.router import RequestRouter, RoutingRequest
from hpc_dynamo.router.scheduling.lease import RoutingHints
from hpc_dynamo.run import Attempt, ExtraJobFolder, Run, write_json
from hpc_dynamo.tasks.node import CODEC
from hpc_dynamo.topology import Plan, plan, plan_extra_job
from hpc_dynamo.wire import ControlServer
from tests.support.runs import until

pytestmark = pytest.mark.slow

HERE = "127.0.0.1"
SOON_S = 60.0
CONFIG = Config(
    engine=Engine(name="simulator", device=Device.cpu, args={"timing": "instant"}),
    model=Model(name="m"),
    topology=Topology(aggregated=Pool(workers=2)),
    cluster=Cluster(
        heartbeat_timeout_s=3.0, reconnect_timeout_s=3.0, bootstrap=Bootstrap(timeout_s=3.0)
    ),
)
AGENT = "import sys; from hpc_dynamo.tasks.join import main; sys.exit(main(sys.argv[1]))"


@dataclass(frozen=True)
class Head:
    attempt: Attempt
    members: Membership
    router: RequestRouter

    def extra_job(self) -> ExtraJobFolder:
        """Add a job of one node, with rank 2 and node 1."""
        layout = plan_extra_job(CONFIG.topology, self.attempt.plan(), Role.aggregated, 1).shifted(
            2, 1
        )
        return self.attempt.new_extra_job(layout)

    async def ready(self, count: int) -> None:
        with self.members.subscribe() as reports:
            async with asyncio.timeout(SOON_S):
                while sum(1 for _ in self.router.workers) < count:
                    await reports.get()


def fail_job(error: EngineError) -> None:
    raise error


@pytest.fixture
async def head(attempt: Attempt) -> AsyncIterator[Head]:
    async with running_head(attempt, CONFIG) as head:
        yield head


@asynccontextmanager
async def running_head(
    attempt: Attempt,
    config: Config,
    layout: Plan | None = None,
    fail_job: Callable[[EngineError], None] = fail_job,
) -> AsyncIterator[Head]:
    """The control plane of a head without an agent of its own."""
    write_json(attempt.config_file, config)
    write_json(attempt.plan_file, layout or plan(config))
    run_keys = attempt.run.secrets().keys
    server = ControlServer(HERE, run_keys, CODEC)
    record = NodeRecord(
        node=0, host="here", address=HERE, pid=1, log="", control_endpoint=server.endpoint
    )
    roster = Roster(nodes=(record,), method="tcp", seconds=0.0)
    write_json(attempt.roster_file, roster)
    router = RequestRouter.from_config(config)
    members = Membership(attempt, roster, server, {"": router}, fail_job)
    listening = asyncio.create_task(members.listen())
    yield Head(attempt, members, router)
    listening.cancel()
    await asyncio.wait([listening])
    server.close()


@asynccontextmanager
async def agent(job: ExtraJobFolder, index: int = 0) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a task of an extra job. It must end by itself."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AGENT, str(job.path)),
        env=os.environ | {"SUBMITIT_LOCAL_GLOBALID": str(index)},
    )
    try:
        yield process
        async with asyncio.timeout(SOON_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_agent_joins_reports_preemption_and_leaves(head: Head) -> None:
    job = head.extra_job()
    head.members.expect(job.plan())
    async with agent(job) as process:
        await head.ready(2)
        workers = head.members.in_order()
        assert [(w.rank, w.node, w.state) for w in workers] == [
            (rank, 1, WorkerState.ready) for rank in (2, 3)
        ]
        assert {Path(w.log).parent for w in workers} == {head.attempt.logs}
        process.send_signal(signal.SIGUSR2)
        async with asyncio.timeout(SOON_S):
            assert await head.members.preempted_nodes.get() == 1
        await head.members.stop(frozenset({1}), "not needed", SOON_S)
        assert head.members.workers == {}
        assert list(head.router.workers) == []
    assert job.outcome() == Outcome(exit_code=0)


MULTI_NODE = replace(
    CONFIG,
    engine=replace(CONFIG.engine, device=Device.cuda),
    topology=Topology(
        kind=TopologyKind.disaggregated,
        prefill=Pool(workers=1, tensor_parallel=2),
        decode=Pool(workers=1, tensor_parallel=2),
    ),
    cluster=replace(CONFIG.cluster, gpus_per_node=1, preflight=False),
)


async def test_multi_node_worker_joins_changes_its_role_and_leaves(attempt: Attempt) -> None:
    """Its shards are on nodes 4 and 5; the agent of the second joins late."""
    layout = plan(MULTI_NODE)
    async with running_head(attempt, MULTI_NODE) as head:
        job = attempt.new_extra_job(
            plan_extra_job(MULTI_NODE.topology, layout, Role.decode, 2).shifted(2, layout.nodes)
        )
        head.members.expect(job.plan())
        async with agent(job), AsyncExitStack() as second:
            with head.members.subscribe() as reports:
                assert (await soon(reports)).state is WorkerState.starting
                await second.enter_async_context(agent(job, 1))
                assert (await soon(reports)).state is WorkerState.ready
                await head.members.set_role(2, Role.prefill, restart=True)
                states = [await soon(reports), await soon(reports)]
            assert [(s.role, s.state) for s in states] == [
                (Role.prefill, WorkerState.starting),
                (Role.prefill, WorkerState.ready),
            ]
            await head.members.stop(frozenset({4, 5}), "not needed", SOON_S)
        assert head.members.workers == {}
    for node in (4, 5):
        said = attempt.agent_log(node).read_text()
        assert [f"--role {role} " in said for role in ("decode", "prefill")] == [True, True]


async def soon(reports: "asyncio.Queue[WorkerReport]") -> WorkerReport:
    async with asyncio.timeout(SOON_S):
        return await reports.get()


async def test_role_change_fails_if_the_worker_leaves(head: Head) -> None:
    job = head.extra_job()
    head.members.expect(job.plan())
    async with agent(job), AsyncExitStack() as stack:
        await head.ready(2)
        lease = await head.router.route(RoutingRequest(hints=RoutingHints(workers=(2,))))
        client = await stack.enter_async_context(HttpClient.bearer(""))
        role_changer = RoleChanger(CONFIG, head.router, head.members, client)
        role = Role.aggregated  # the way there is the same, whatever the roles
        change = asyncio.create_task(role_changer.change_role(2, role, role))
        await asyncio.sleep(0)
        await head.members.stop(frozenset({1}), "not needed", SOON_S)
        async with asyncio.timeout(SOON_S):
            assert (await change).reason == "worker 2 died"
        lease.release()


@pytest.mark.parametrize("known", [False, True])
async def test_unexpected_agent_is_stopped(head: Head, known: bool) -> None:
    """An agent that is no longer expected is stopped, too."""
    job = head.extra_job()
    if known:
        head.members.expect(job.plan())
        head.members.forget(job.plan())
    async with agent(job):
        pass
    assert head.members.workers == {}
    assert "does not expect this job" in job.agent_log(1).read_text()


async def test_agent_ends_if_the_head_never_answers(attempt: Attempt) -> None:
    write_json(attempt.config_file, CONFIG)
    write_json(attempt.plan_file, plan(CONFIG))
    ended_job = NodeRecord(
        node=0, host="here", address=HERE, pid=1, log="", control_endpoint=f"tcp://{HERE}:9"
    )
    write_json(attempt.roster_file, Roster(nodes=(ended_job,), method="tcp", seconds=0.0))
    job = attempt.new_extra_job(
        plan_extra_job(CONFIG.topology, plan(CONFIG), Role.aggregated, 1).shifted(2, 1)
    )
    async with agent(job):
        pass
    assert "head lost" in job.agent_log(1).read_text()


async def test_agent_does_not_start_after_the_end_of_the_run(head: Head) -> None:
    write_json(head.attempt.outcome_file, Outcome(exit_code=0))
    job = head.extra_job()
    async with agent(job):
        pass
    assert "starts" not in job.agent_log(1).read_text()
    outcome = job.outcome()
    assert outcome
    assert "had ended before" in outcome.message


async def test_agent_waits_for_the_head(head: Head) -> None:
    job, kept = head.extra_job(), head.attempt.path / "kept"
    head.members.expect(job.plan())
    head.attempt.roster_file.rename(kept)
    async with agent(job):
        await asyncio.to_thread(until, "its log", job.agent_log(1).exists)
        kept.rename(head.attempt.roster_file)
        await head.ready(2)
        await head.members.stop(frozenset({1}), "not needed", SOON_S)


async def test_agent_does_not_wait_for_a_head_that_has_ended(head: Head) -> None:
    job = head.extra_job()
    head.attempt.roster_file.unlink()
    async with agent(job):
        await asyncio.to_thread(until, "its log", job.agent_log(1).exists)
        write_json(head.attempt.outcome_file, Outcome(exit_code=1))
    outcome = job.outcome()
    assert outcome
    assert "had ended before" in outcome.message


HARDWARE = Topology(
    kind=TopologyKind.disaggregated,
    prefill=Pool(workers=1, hardware="fast"),
    decode=Pool(workers=2, hardware="wide"),
)


async def test_hetero_jobs_are_submitted_again_after_a_requeue(attempt: Attempt) -> None:
    """The jobs are processes of this machine."""
    cluster = replace(CONFIG.cluster, hardware={"fast": Hardware(), "wide": Hardware()})
    config = replace(CONFIG, topology=HARDWARE, cluster=cluster)
    layout, why = replace(plan(config), separate_jobs=True), list[EngineError]()
    write_json(attempt.job_file, JobRecord(launcher="local", job_id="1"))
    async with running_head(attempt, config, layout, why.append) as head:
        preempted, lost = asyncio.Event(), asyncio.Queue[EngineError]()
        new_controller = partial(
            HeterogeneousJobs, attempt, head.router, head.members, preempted.set, lost.put_nowait
        )
        async with running_hetero_jobs(new_controller()):
            await head.ready(2)
            (job,) = attempt.extra_jobs()
            assert job.plan() == layout.group_plans[1]
            (node,) = job.nodes()
            os.kill(node.pid, signal.SIGUSR2)
            async with asyncio.timeout(SOON_S):
                await preempted.wait()
            os.kill(node.pid, signal.SIGTERM)
            async with asyncio.timeout(SOON_S):
                assert "of the decode workers has ended" in (await lost.get()).message
            assert "no decode worker is left" in why[0].message
        async with running_hetero_jobs(new_controller()) as hetero_jobs:
            await head.ready(2)
            former, job = attempt.extra_jobs()
            assert (known := former.state())
            assert known.state is ExtraJobState.ended
            await hetero_jobs.end("over")
        state = job.state()
        assert state
        assert state.state is ExtraJobState.ended
        assert lost.empty(), "they were ended"


async def test_hetero_job_with_a_node_fault_ends_the_run(attempt: Attempt, tmp_path: Path) -> None:
    config = replace(without_model(tmp_path), topology=HARDWARE)
    cluster = replace(CONFIG.cluster, hardware={"fast": Hardware(), "wide": Hardware()})
    config = replace(config, cluster=cluster)
    write_json(attempt.job_file, JobRecord(launcher="local", job_id="1"))
    async with running_head(attempt, config, replace(plan(config), separate_jobs=True)) as head:
        lost = asyncio.Queue[EngineError]()
        hetero_jobs = HeterogeneousJobs(attempt, head.router, head.members, list, lost.put_nowait)
        async with running_hetero_jobs(hetero_jobs), asyncio.timeout(SOON_S):
            said = (await lost.get()).message
    assert "of the decode workers has ended: not fit for this run: " in said
    assert f"model.path={tmp_path}/nothing is not there" in said
    assert not list(attempt.logs.glob("worker-*"))


def without_model(folder: Path) -> Config:
    """Configuration of a model that does not exist."""
    return replace(CONFIG, model=Model(name="m", path=f"{folder}/nothing"))


@asynccontextmanager
async def running_hetero_jobs(hetero_jobs: HeterogeneousJobs) -> AsyncIterator[HeterogeneousJobs]:
    running = asyncio.create_task(hetero_jobs.run())
    yield hetero_jobs
    running.cancel()
    await asyncio.wait([running])


def scale_out_of(
    head: Head, node_hours: float | None = None, config: Config = CONFIG
) -> ScaleOutController:
    """Return a controller that submits at once, as processes on this machine."""
    limits = ScaleOut(max_nodes=1, max_node_hours=node_hours)
    rules = Planner(mode=PlannerMode.load, stabilization_intervals=1, scale_out=limits)
    write_json(head.attempt.config_file, replace(config, planner=rules))
    write_json(head.attempt.job_file, JobRecord(launcher="local", job_id="1"))
    return ScaleOutController(head.attempt, head.router, head.members, None, changing_role=tuple)


def decision(more: int) -> PlannerDecision:
    return PlannerDecision(
        signals=Signals(at=time.time(), seconds=1.0),
        expected=ExpectedLoad(),
        target=TargetSplit(prefill=0, decode=0),
        gap=CapacityGap(missing=more, spare=0, role=Role.aggregated),
    )


@asynccontextmanager
async def running(grower: ScaleOutController) -> AsyncIterator[None]:
    task = asyncio.create_task(grower.run())
    yield
    await grower.end("all done")
    task.cancel()
    await asyncio.wait([task])


async def test_node_hours_of_earlier_attempts_count(
    head: Head, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    later = run.new_attempt(CONFIG, plan(CONFIG))
    job, now = (
        later.new_extra_job(plan_extra_job(CONFIG.topology, plan(CONFIG), Role.aggregated, 1)),
        time.time(),
    )
    used = ExtraJobStatus(
        number=1, role=Role.aggregated, nodes=2, ranks=(2, 3), requested_at=now - 7200.0,
        running_since=now - 7200.0, running_until=now - 3600.0, state=ExtraJobState.ended,
    )  # fmt: skip
    write_json(job.state_file, used)
    scaling = scale_out_of(head, node_hours=2.01)
    async with running(scaling):
        scaling.on_decision(decision(more=2))
        why = "planner.scale_out.max_node_hours leave no more"
        await asyncio.to_thread(until, "a word", lambda: why in caplog.text, SOON_S)
        assert scaling.node_hours == 2.0
    assert head.attempt.extra_jobs() == []


def states(attempt: Attempt) -> list[ExtraJobStatus]:
    return [state for job in attempt.extra_jobs() if (state := job.state())]


async def test_job_being_submitted_ends_with_the_run(head: Head) -> None:
    scaling = scale_out_of(head)
    async with running(scaling):
        scaling.on_decision(decision(more=2))
        await asyncio.to_thread(until, "a job", lambda: states(head.attempt), SOON_S)
    (job,) = head.attempt.extra_jobs()
    state, folders = job.state(), launch.find_job(job)
    assert state
    assert (state.state, state.detail) == (ExtraJobState.ended, "all done")
    assert folders
    await asyncio.to_thread(
        until, "its end", lambda: folders.state()[0] is launch.JobState.ended, SOON_S
    )
    assert head.members.workers == {}


async def test_extra_job_with_a_node_fault_ends_and_the_run_continues(
    head: Head, tmp_path: Path
) -> None:
    scaling = scale_out_of(head, config=without_model(tmp_path))
    async with running(scaling):
        scaling.on_decision(decision(more=2))
        await asyncio.to_thread(until, "its end", lambda: ended(head.attempt), SOON_S)
        scaling.on_decision(decision(more=2))
        file = head.attempt.scale_out_file
        await asyncio.to_thread(until, "a word", lambda: len(lines(file)) == 2, SOON_S)
        status = scaling.extend_status(Status(at=0.0, phase="serving", workers=()))
    (job,) = head.attempt.extra_jobs()
    what = f"model.path={tmp_path}/nothing is not there"
    assert what in lines(file)[1]
    assert what in serving.extra_job_line(status.extra_jobs[0])
    assert "try: a path on a shared disk" in status.extra_jobs[0].detail
    assert not list(head.attempt.logs.glob("worker-*"))
    assert (outcome := job.outcome())
    assert what in outcome.message


async def test_extra_job_ends_if_one_of_its_nodes_has_a_fault(head: Head) -> None:
    scaling = scale_out_of(head)
    async with running(scaling):
        scaling.on_decision(decision(more=2))
        await head.ready(2)
        (job,) = head.attempt.extra_jobs()
        (node,) = job.nodes()
        other = msgspec.structs.replace(node, node=2, faults=("n3: no GPU is visible",))
        write_json(job.node_file(2), other)  # as its agent leaves it, which then ends
        await asyncio.to_thread(until, "its end", lambda: ended(head.attempt), SOON_S)
        folders = launch.find_job(job)
        assert folders
        await asyncio.to_thread(until, "its processes' end", lambda: is_over(folders), SOON_S)
    (state,) = states(head.attempt)
    assert state.detail == "not fit for this run: n3: no GPU is visible"


def ended(attempt: Attempt) -> bool:
    return any(job.state is ExtraJobState.ended for job in states(attempt))


def is_over(job: launch.LaunchedJob) -> bool:
    return job.state()[0] is launch.JobState.ended


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()
