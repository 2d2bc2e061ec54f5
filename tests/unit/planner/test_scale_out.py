"""Submission and release of extra jobs by the scale-out policy."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.config import (
    Config,
    Device,
    Engine,
    Planner,
    PlannerMode,
    Pool,
    Role,
    ScaleOut,
    Task,
    Topology,
    TopologyKind,
    validate,
)
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.scale_out import (
    RETRY_INTERVALS,
    Budget,
    JobCapacity,
    ScaleOutPolicy,
    ScaleOutStep,
)
from hpc_dynamo.planner.signals import CapacityGap
from hpc_dynamo.planner.target_split import ReadyWorkers, WorkerNeed, capacity_gap
from hpc_dynamo.topology import Plan, plan, plan_extra_job

INTERVAL_S, IDLE_S, PATIENCE = 10.0, 60.0, 2
RULES = Planner(
    mode=PlannerMode.load,
    interval_s=INTERVAL_S,
    stabilization_intervals=PATIENCE,
    scale_out=ScaleOut(max_nodes=4, nodes_per_job=1, scale_in_delay_s=IDLE_S),
)
WIDE = Budget(nodes=4, node_hours=math.inf, seconds=math.inf)
TWO_GPUS = Pool(workers=1, tensor_parallel=2)
EACH = {Role.prefill: 2, Role.decode: 2}


class Clock:
    """Consecutive intervals."""

    def __init__(self, rules: Planner = RULES) -> None:
        self.rule, self.at = ScaleOutPolicy(rules, EACH), 0.0

    def step(
        self, more: int = 0, spare: int = 0, *jobs: JobCapacity, room: Budget = WIDE
    ) -> ScaleOutStep:
        self.at += INTERVAL_S
        lacks = CapacityGap(missing=more, spare=spare, role=Role.decode)
        return self.rule.decide(self.at, lacks, jobs, room)


def test_smallest_gap_of_the_stabilization_intervals_is_requested() -> None:
    clock = Clock()
    assert clock.step(5).submit == 0
    assert clock.step(3).submit == 2
    assert clock.step(3, 0, JobCapacity(1, 0, 2, True), JobCapacity(2, 0, 2)).submit == 0, (
        "those come already"
    )
    assert clock.step(9).submit == 0, "patience begins anew"


def test_transient_demand_does_not_scale_out() -> None:
    clock = Clock()
    assert [clock.step(more).submit for more in (4, 0, 4, 0, 4)] == [0] * 5


@pytest.mark.parametrize(
    ("room", "why"),
    [
        (Budget(0, math.inf, math.inf), "planner.scale_out.max_nodes"),
        (Budget(4, 0.01, math.inf), "planner.scale_out.max_node_hours"),
        (Budget(4, math.inf, 60), "too little walltime"),
    ],
)
def test_scale_out_beyond_a_limit_names_the_limit(room: Budget, why: str) -> None:
    clock = Clock()
    clock.step(2, room=room)
    step = clock.step(2, room=room)
    assert step.submit == 0
    assert why in step.reason


def test_unneeded_pending_job_is_cancelled() -> None:
    clock, waits, runs = Clock(), JobCapacity(2, 0, 2, True), JobCapacity(1, 2, 0)
    assert clock.step(2, 0, waits, runs).cancel == ()
    assert clock.step(0, 0, waits, runs).cancel == ()
    assert clock.step(0, 0, waits, runs) == ScaleOutStep(cancel=(2,), reason="not needed")


def test_running_job_unneeded_for_long_is_released() -> None:
    clock, old, new = Clock(), JobCapacity(1, 2, 0), JobCapacity(2, 2, 0)
    assert all(clock.step(0, 3, old, new).release == () for _ in range(6))
    assert clock.step(0, 3, old, new).release == (2,), "one could go, the newest"
    assert clock.step(0, 2, old).release == (), "the clock of the older one begins"
    assert clock.step(1, 0, old).release == ()
    assert all(clock.step(0, 2, old).release == () for _ in range(6)), "and begins anew"
    assert clock.step(0, 2, old).release == (1,)


def test_used_up_node_hours_release_all_jobs() -> None:
    step = Clock().step(
        9, 0, JobCapacity(1, 2, 0), JobCapacity(2, 0, 2, True), room=Budget(2, 0.0, math.inf)
    )
    assert (step.submit, step.cancel, step.release) == (0, (2,), (1,))


def test_failed_job_delays_the_next_one() -> None:
    clock = Clock()
    clock.rule.failed(clock.at)
    steps = [clock.step(2) for _ in range(RETRY_INTERVALS)]
    assert [step.submit for step in steps] == [0] * (RETRY_INTERVALS - 1) + [1]
    assert steps[PATIENCE].reason == "2 decode workers more, but an extra job failed a while ago"
    clock.rule.failed(clock.at)
    assert not any(clock.step(2).submit for _ in range(2 * RETRY_INTERVALS - 1))
    assert clock.step(2).submit


jobs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=4).map(
    lambda rows: [JobCapacity(n, 0 if p else r, c, p) for n, (r, c, p) in enumerate(rows)]
)
lacks = st.one_of(
    st.integers(0, 20).map(lambda n: CapacityGap(missing=n, spare=0, role=Role.decode)),
    st.integers(0, 20).map(lambda n: CapacityGap(missing=0, spare=n, role=Role.prefill)),
)
rooms = st.builds(
    Budget, st.integers(-1, 9), st.floats(-1, 9), st.floats(-100, 4000, allow_nan=False)
)


@pytest.mark.slow
@given(
    st.lists(st.tuples(lacks, jobs, rooms), min_size=1, max_size=30),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_random_signals_never_exceed_the_limits(
    story: list[tuple[CapacityGap, list[JobCapacity], Budget]], nodes_each: int, patience: int
) -> None:
    grow = ScaleOut(max_nodes=9, nodes_per_job=nodes_each, scale_in_delay_s=IDLE_S)
    rule, lean = (
        ScaleOutPolicy(replace(RULES, scale_out=grow, stabilization_intervals=patience), EACH),
        list[bool](),
    )
    for number, (lacking, here, room) in enumerate(story):
        step = rule.decide(number * INTERVAL_S, lacking, here, room)
        known = {job.number: job for job in here}
        assert step.submit * nodes_each <= max(room.nodes, 0)
        assert not step.submit or not (step.cancel or step.release), "asked for and given back"
        assert all(known[n].pending for n in step.cancel)
        assert not any(known[n].pending for n in step.release)
        lean.append(lacking.missing > sum(job.coming for job in here))
        if step.submit:
            assert room.node_hours > 0
            assert room.seconds > 0
            assert len(lean) >= patience
            assert all(lean[-patience:])
        if room.node_hours > 0:
            going = [known[n].workers for n in (*step.cancel, *step.release)]
            coming = sum(job.coming for job in here)
            assert sum(going) <= max(lacking.spare + coming - lacking.missing, 0)
            assert not step.release or number * INTERVAL_S >= IDLE_S


@given(
    st.floats(0, 20), st.floats(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(0, 3)
)
def test_missing_and_spare_workers_exclude_each_other(
    prefill: float, decode: float, here: int, also: int, moving: int
) -> None:
    found = capacity_gap(WorkerNeed(prefill, decode), ReadyWorkers(here, also), moving, RULES)
    assert not (found.missing and found.spare)
    total = here + also + moving
    assert total + found.missing >= math.ceil(prefill) + math.ceil(decode) - 1e-9
    assert total - found.spare >= min(total, 2)


def config(**grow: object) -> Config:
    return Config(
        task=Task.serve,
        engine=Engine(name="simulator", device=Device.cpu),
        topology=Topology(
            TopologyKind.disaggregated, prefill=TWO_GPUS, decode=replace(TWO_GPUS, workers=2)
        ),
        planner=replace(RULES, scale_out=ScaleOut(**{"max_nodes": 2, **grow})),  # type: ignore[arg-type]
    )


def test_extra_job_is_as_full_as_the_fullest_node_or_its_gpus() -> None:
    layout = plan(config())
    more = plan_extra_job(config().topology, layout, Role.decode, 2).shifted(3, 1)
    assert [(w.rank, w.role, w.node) for w in more.workers] == [
        (rank, Role.decode, node) for rank, node in enumerate([1, 2] * 3, start=3)
    ]
    assert more.first_node == 1
    on_gpus = Plan(1, 5, layout.workers)
    assert len(plan_extra_job(config().topology, on_gpus, Role.decode, 1).workers) == 2, (
        "of two GPUs each"
    )
    with pytest.raises(ConfigError, match="too few for a decode worker of 2 GPUs"):
        plan_extra_job(config().topology, Plan(1, 1, layout.workers), Role.decode, 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (config(nodes_per_job=3), "planner.scale_out.nodes_per_job=3"),
        (config(max_nodes=-1), "planner.scale_out.max_nodes=-1"),
        (config(max_node_hours=0.0), "planner.scale_out.max_node_hours=0.0"),
        (replace(config(), task=Task.batch), "planner.scale_out adds workers to an endpoint"),
        (
            replace(config(), planner=replace(RULES, mode=PlannerMode.off)),
            "the planner is off",
        ),
        (replace(config(), topology=Topology(aggregated=Pool(1))), "has no roles to change here"),
    ],
)
def test_invalid_scale_out_configuration_is_rejected(wrong: Config, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        validate(wrong)
