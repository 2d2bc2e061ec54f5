"""From a run's configuration to the job that is simulated."""

from hpc_dynamo.config import Config, PlannerMode, Role, Task
from hpc_dynamo.errors import ConfigError, InputError
from hpc_dynamo.planner.planner import Planner
from hpc_dynamo.router import AdmissionLimits as Bounds
from hpc_dynamo.simulation.load import TraceRequest
from hpc_dynamo.simulation.performance import TimingPerformance
from hpc_dynamo.simulation.pool import RoleChangeModel
from hpc_dynamo.simulation.result import LatencyTargets
from hpc_dynamo.simulation.run import EngineModel, SimulatedJob
from hpc_dynamo.simulation.worker import EngineSizes
from hpc_dynamo.timing_model import load_timing

MICRO = 1e-6


def simulated_job(config: Config) -> SimulatedJob:
    """Raises ConfigError, or InputError for a file of timing that does not fit."""
    sizes, planner = config.simulate, config.planner
    limits = EngineSizes(
        max_sequences=config.engine.max_num_seqs,
        step_tokens=sizes.max_num_batched_tokens,
        cache_tokens=sizes.kv_cache_tokens,
        transfer_s_per_token=sizes.kv_transfer_us_per_token * MICRO,
    )
    return SimulatedJob(
        engine=EngineModel(limits, load_timing(sizes.timing_model)),
        workers={role: pool.workers for role, pool in config.topology.pools},
        targets=LatencyTargets(planner.ttft_s, planner.itl_s),
        router=config.router,
        limits=Bounds.from_config(_served(config)),
        role_change=RoleChangeModel(
            role_change_s=sizes.role_change_s,
            drain_s=planner.drain_timeout_s,
            restart_engine=planner.restart_on_role_change,
            min_prefill_workers=planner.min_prefill_workers,
            min_decode_workers=planner.min_decode_workers,
        ),
        interval_s=planner.interval_s,
        worker_gpus=_gpus(config),
    )


def simulated_planner(config: Config, job: SimulatedJob) -> Planner | None:
    """The job's own planner; its profile is the engine's model. None where it is off. Raises
    ConfigError."""
    if config.planner.mode is PlannerMode.off:
        return None
    engine = job.engine
    prefill, decode = engine.of(Role.prefill), engine.of(Role.decode)
    performance = TimingPerformance(prefill, decode, engine.limits, job.role_change.role_change_s)
    return Planner(config.planner, performance)


def check_requests_fit(job: SimulatedJob, requests: list[TraceRequest]) -> None:
    """Raises InputError for a request that no worker's cache holds: it would wait for ever."""
    longest = max(requests, key=lambda r: r.prompt_tokens + r.response_tokens)
    need, page = longest.prompt_tokens + longest.response_tokens, job.engine.limits.page_tokens
    if need + page > job.engine.limits.cache_tokens:
        what = f"a request of {need} tokens does not fit into a worker's KV cache"
        raise InputError(what, hint=f"simulate.kv_cache_tokens={2 * need}")


def _served(config: Config) -> Config:
    """Bounds are those of an endpoint."""
    return Config(task=Task.serve, engine=config.engine, serve=config.serve, router=config.router)


def _gpus(config: Config) -> int:
    """Of one worker. Raises ConfigError where roles differ: a worker has both in turn."""
    sizes = {role: pool.gpus for role, pool in config.topology.pools}
    if len(set(sizes.values())) > 1:
        said = " and ".join(f"{role} workers of {gpus}" for role, gpus in sizes.items())
        hint = "the same parallel sizes for both: one timing is modelled"
        raise ConfigError(f"topology has {said} GPUs", hint=hint)
    return next(iter(sizes.values()))
