"""Simulates a job in virtual time: the real router and planner with modelled engines.

- run: `simulate` and its SimulatedJob; from_config builds it from a configuration.
- load: requests of a trace, or of synthetic phases.
- request_flow: one request through router and workers.
- pool: the workers and their role changes.
- worker, step_run, cache: one engine, computed from event to event; ranks: several in a worker.
- kv_event_source: KV events of a worker's cache.
- performance: a timing model for the planner.
- result, result_plot: the results.
- split_search: the best split of prefill and decode workers.
- clock: the event loop with virtual time.
"""

from hpc_dynamo.simulation.load import LoadPhase, TraceRequest, read_trace, synthetic_load
from hpc_dynamo.simulation.performance import TimingPerformance
from hpc_dynamo.simulation.result import LatencyTargets, SimulationResult
from hpc_dynamo.simulation.run import DecidesRoles, EngineModel, SimulatedJob, simulate

__all__ = [
    "DecidesRoles",
    "EngineModel",
    "LatencyTargets",
    "LoadPhase",
    "SimulatedJob",
    "SimulationResult",
    "TimingPerformance",
    "TraceRequest",
    "read_trace",
    "simulate",
    "synthetic_load",
]
