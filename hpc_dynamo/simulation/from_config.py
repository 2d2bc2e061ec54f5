"""Builds the simulated job from a configuration."""

from hpc_dynamo.config import Config, Planner, PlannerMode, Role, Topology
from hpc_dynamo.errors import ConfigError, InputError
from hpc_dynamo.messages import PrefixCaches
from hpc_dynamo.planner.planner import RolePlanner
from hpc_dynamo.router import AdmissionLimits
from hpc_dynamo.simulation.load import TraceRequest
from hpc_dynamo.simulation.performance import TimingPerformance
from hpc_dynamo.simulation.pool import RoleChangeModel
from hpc_dynamo.simulation.result import LatencyTargets
from hpc_dynamo.simulation.run import EngineModel, SimulatedJob
from hpc_dynamo.simulation.worker import EngineSizes
from hpc_dynamo.timing_model import load_timing

MICRO = 1e-6


def simulated_job(config: Config) -> SimulatedJob:
    """Return the job. Raises ConfigError, or InputError for an invalid timing file."""
    simulate, planner, seqs = config.simulate, config.planner, config.engine.max_num_seqs
    ranks = max(pool.data_parallel for _, pool in config.topology.pools)
    sizes = EngineSizes(
        max_sequences=-(-seqs // ranks),
        step_tokens=simulate.max_num_batched_tokens,
        cache_tokens=simulate.kv_cache_tokens,
        transfer_s_per_token=simulate.kv_transfer_us_per_token * MICRO,
    )
    return SimulatedJob(
        engine=EngineModel(sizes, load_timing(simulate.timing_model)),
        workers={role: pool.workers for role, pool in config.topology.pools},
        targets=LatencyTargets(planner.ttft_s, planner.itl_s),
        router=config.router,
        limits=AdmissionLimits.for_endpoint(config.serve, config.router, seqs),
        role_change=RoleChangeModel(
            role_change_s=simulate.role_change_s,
            drain_s=planner.drain_timeout_s,
            restart_engine=planner.restart_on_role_change,
            min_prefill_workers=planner.min_prefill_workers,
            min_decode_workers=planner.min_decode_workers,
        ),
        interval_s=planner.interval_s,
        worker_gpus=_gpus(config.topology),
        caches=PrefixCaches(ranks),
    )


def simulated_planner(planner: Planner, job: SimulatedJob) -> RolePlanner | None:
    """Return the planner with the timing model as its profile, None if it is off.

    Raises ConfigError.
    """
    if planner.mode is PlannerMode.off:
        return None
    engine = job.engine
    prefill, decode = engine.of(Role.prefill), engine.of(Role.decode)
    performance = TimingPerformance(prefill, decode, engine.sizes, job.role_change.role_change_s)
    return RolePlanner(planner, performance)


def check_requests_fit(job: SimulatedJob, requests: list[TraceRequest]) -> None:
    """Raise InputError for a request larger than a KV cache, which is never admitted."""
    longest = max(requests, key=lambda r: r.prompt_tokens + r.response_tokens)
    need, page = longest.prompt_tokens + longest.response_tokens, job.engine.sizes.page_tokens
    if need + page > job.engine.sizes.cache_tokens:
        what = f"a request of {need} tokens does not fit into a worker's KV cache"
        raise InputError(what, hint=f"simulate.kv_cache_tokens={2 * need}")


def _gpus(topology: Topology) -> int:
    """Return the GPUs of a worker. Raises ConfigError if they differ between roles."""
    sizes = {role: pool.gpus for role, pool in topology.pools}
    if len(set(sizes.values())) > 1:
        shown = " and ".join(f"{role} workers of {gpus}" for role, gpus in sizes.items())
        hint = "use the same parallel sizes for both roles: there is one timing model"
        raise ConfigError(f"topology has {shown} GPUs", hint=hint)
    return next(iter(sizes.values()))
