"""Runs NVIDIA Dynamo 1.6.1's planner, which answers over stdin and stdout.

Runs in Dynamo's interpreter: `python dynamo_process.py SETTING`, with JSON. An input line has the
signals of an interval, an output line the wanted workers per role. The code is the replay adapter
of `dynamo.planner` with its builtin plugins, unchanged. A GPU budget fixes the total number of
workers.

Its performance model (`optimization_target` "sla") needs AISimulate, a package that is not
available. The timing model of the engines replaces it, which is exact.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any


@dataclass
class ForwardPass:
    """Replaces a class of aisimulate_core.sdk that describes a model; it is not read."""

    model: str = ""
    system: str = ""
    backend: str = ""
    worker_type: str = ""
    estimation_mode: str = ""
    tp: int = 1
    pp: int = 1
    attention_dp: int = 1
    estimator_config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_legacy_engine_config(cls, *_: object) -> "ForwardPass":
        return cls()


class Exact:
    """Replaces a class of aisimulate_core.sdk: step durations by the engines' timing model."""

    timing: dict[str, float]

    @classmethod
    def best_available(cls, _: object) -> "Exact":
        return cls()

    def tune_with_fpms(self, _: object) -> None:
        """Do nothing, since the model is exact."""

    def diagnostics(self) -> dict[str, str]:
        return {"readiness": "ready", "source": "timing"}

    def estimate_forward_pass_time_ms(self, ranks: list[dict[str, Any]]) -> float:
        return 1e3 * max(self._step_s(rank["scheduled_requests"]) for rank in ranks)

    def _step_s(self, step: dict[str, float]) -> float:
        t, tokens, sequences = self.timing, step["sum_prefill_tokens"], step["num_decode_requests"]
        fixed = max(t["prefill_s"] if tokens else 0.0, t["decode_s"] if sequences else 0.0)
        attended = tokens * (step["sum_prefill_kv_tokens"] + tokens / 2)
        return float(
            fixed
            + t["prefill_s_per_token"] * tokens
            + t["prefill_s_per_token_context"] * attended
            + t["decode_s_per_sequence"] * sequences
            + t["decode_s_per_context_token"] * step["sum_decode_kv_tokens"]
        )


def stand_in(timing: dict[str, float]) -> None:
    """Install the exact model under the name of the package."""
    Exact.timing = timing
    package, sdk = ModuleType("aisimulate_core"), ModuleType("aisimulate_core.sdk")
    vars(sdk).update(ForwardPassPerfModelConfig=ForwardPass, RustForwardPassPerfModel=Exact)
    vars(package).update(sdk=sdk)
    sys.modules.update({"aisimulate_core": package, "aisimulate_core.sdk": sdk})


def adapter(setting: dict[str, Any]) -> Any:
    """Return its planner for a job of `workers` GPUs."""
    config = import_module("dynamo.planner.config.planner_config").PlannerConfig
    replay = import_module("dynamo.planner.offline.replay_adapter")
    types = import_module("dynamo.planner.core.types")
    engine = types.EngineCapabilities(
        num_gpu=1,
        max_num_batched_tokens=setting["step_tokens"],
        max_num_seqs=setting["sequences"],
        context_length=setting["context"],
        max_kv_tokens=setting["cache_tokens"],
    )
    workers = setting["workers"]
    planner = config(
        mode="disagg",
        backend="mocker",
        environment="virtual",
        advisory=True,
        max_gpu_budget=workers,
        min_gpu_budget=workers,
        prefill_engine_num_gpu=1,
        decode_engine_num_gpu=1,
        **setting["options"],
    )
    capabilities = types.WorkerCapabilities(prefill=engine, decode=engine)
    return replay.create_replay_planner_adapter(planner, capabilities, capture_details=False)


def snapshot(seen: dict[str, Any], rank: int, setting: dict[str, Any], prefill: bool) -> object:
    """Return a worker's last step, from the means over the workers."""
    answers = 0 if prefill else round(seen["running"])
    kv = 0 if prefill else round(seen["kv_usage"] * setting["cache_tokens"])
    queued = round(seen["prefill_tokens"]) if prefill else 0
    lengths = max(1.0, seen["prompt_tokens"])
    chunk = min(queued, setting["step_tokens"])
    return {
        "worker_id": str(rank),
        "wall_time": 0.0,  # not used by the model
        "num_prefill_requests": int(chunk > 0),
        "sum_prefill_tokens": chunk,
        "var_prefill_length": 0.0,
        "sum_prefill_kv_tokens": 0,
        "num_decode_requests": answers,
        "sum_decode_kv_tokens": kv,
        "var_decode_kv_tokens": 0.0,
        "num_queued_prefill": round(queued / lengths),
        "sum_queued_prefill_tokens": queued,
        "var_queued_prefill_length": 0.0,
        "num_queued_decode": 0 if prefill else round(seen["waiting"]),
        "sum_queued_decode_kv_tokens": 0 if prefill else round(seen["waiting"] * lengths),
        "var_queued_decode_kv_tokens": 0.0,
    }


def traffic(seen: dict[str, Any]) -> dict[str, float]:
    """Return the load of an interval."""
    count = float(seen["requests"])
    return {
        "duration_s": seen["seconds"],
        "num_req": count,
        "shape_count": count,
        "ttft_count": count,
        "itl_count": count,
        "hit_rate_count": count,
        "avg_isl": seen["prompt_tokens"],
        "avg_osl": seen["answer_tokens"],
        "avg_ttft_ms": 1e3 * seen["ttft_s"],
        "avg_itl_ms": 1e3 * seen["itl_s"],
        "avg_kv_hit_rate": seen["hit_rate"],
    }


def result(
    seen: dict[str, Any], setting: dict[str, Any], load: dict[str, float] | None
) -> dict[str, Any]:
    """Return the input that Dynamo's own replay passes to the adapter."""
    prefill = list(range(seen["prefill"]))
    decode = list(range(1000, 1000 + seen["decode"]))
    return {
        "tick_ordinal": 0,
        "active_prefill_count": len(prefill),
        "active_decode_count": len(decode),
        "active_prefill_ids": prefill,
        "active_decode_ids": decode,
        "prefill_fpm_snapshots": [snapshot(seen, rank, setting, True) for rank in prefill],
        "decode_fpm_snapshots": [snapshot(seen, rank, setting, False) for rank in decode],
        "traffic": load,
    }


def main() -> None:
    setting, out = json.loads(sys.argv[1]), sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    logging.disable(logging.WARNING)
    stand_in(setting["timing"])
    with adapter(setting) as planner:
        due_ms = planner.initial_tick_ms()
        for line in sys.stdin:
            seen, decision = json.loads(line), dict[str, Any]()
            load: dict[str, float] | None = traffic(seen)
            while due_ms is not None and due_ms <= 1e3 * seen["at"] + 1:
                decision = planner.on_tick(result(seen, setting, load))
                due_ms, load = decision["next_tick_ms"], None  # each load counts once
            wanted = {role: decision.get(f"target_{role}") for role in ("prefill", "decode")}
            print(json.dumps(wanted), file=out, flush=True)


if __name__ == "__main__":
    main()
