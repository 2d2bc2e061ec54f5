"""benchmarks.planner: its loads, its oracle, and the input of Dynamo's planner."""

from dataclasses import replace

import pytest

from benchmarks.planner.baselines import Scheduled, best_splits, moved
from benchmarks.planner.dynamo_process import Exact, result, traffic
from benchmarks.planner.loads import TARGETS, Load, job, turning
from benchmarks.planner.results import Figures
from hpc_dynamo.config import Role
from hpc_dynamo.planner.signals import Signals
from hpc_dynamo.simulation import LoadPhase, simulate, synthetic_load
from hpc_dynamo.timing_model import TimingModel

SEEN = Signals(
    at=5.0,
    seconds=5.0,
    requests=10,
    prompt_tokens=1000.0,
    prefill=2,
    decode=3,
    prefill_tokens=2500.0,
)


def test_turning_load_changes_and_returns() -> None:
    requests = turning(seed=3, stretch=0.1).requests
    third = len(requests) // 3
    parts = (requests[:third], requests[third : 2 * third], requests[2 * third :])
    ratios = [
        sum(r.prompt_tokens for r in part) / sum(r.response_tokens for r in part) for part in parts
    ]
    assert ratios[0] > 3 * ratios[1] < ratios[2]


def test_oracle_follows_the_best_splits() -> None:
    """A minute of long prompts, then a minute of long responses, on four ranks."""
    phases = [LoadPhase(60.0, 4.0, 8000, 60), LoadPhase(60.0, 6.0, 50, 700)]
    load, four = Load("two", synthetic_load(phases, seed=1)), job(2, ranks=4)
    splits = best_splits(four, load)
    assert splits[0] > splits[3] == 1
    outcome = simulate(
        replace(four, workers={Role.prefill: splits[0], Role.decode: 4 - splits[0]}),
        load.requests,
        Scheduled(splits, 30.0),
    )
    assert outcome.role_changes
    assert Figures.of(load, "oracle", outcome).lost == 0
    assert outcome.targets == TARGETS


def test_baseline_decision_moves_missing_workers() -> None:
    move = moved(SEEN, 4).move
    assert move
    assert (move.count, move.old, move.new) == (2, Role.decode, Role.prefill)
    assert moved(SEEN, 2).move is None


def test_dynamo_receives_the_same_signals() -> None:
    seen = {name: getattr(SEEN, name) for name in SEEN.__struct_fields__}
    told = result(seen, {"cache_tokens": 1000, "step_tokens": 2048}, traffic(seen))
    assert (told["active_prefill_count"], told["active_decode_count"]) == (2, 3)
    assert told["traffic"]["num_req"] == 10
    assert [s["sum_queued_prefill_tokens"] for s in told["prefill_fpm_snapshots"]] == [2500, 2500]


def test_dynamo_performance_model_equals_the_engine_timing() -> None:
    timing = TimingModel(0.01, 1e-4, 1e-9, 0.02, 1e-3, 1e-6)
    Exact.timing = vars(timing)
    step = {
        "sum_prefill_tokens": 100,
        "sum_prefill_kv_tokens": 0,
        "num_decode_requests": 4,
        "sum_decode_kv_tokens": 900,
    }
    milliseconds = Exact().estimate_forward_pass_time_ms([{"scheduled_requests": step}])
    assert milliseconds == pytest.approx(1e3 * timing.step_s(100, 100 * 50, 4, 900))
