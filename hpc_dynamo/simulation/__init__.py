"""A job in virtual time: the unchanged router and planner before modelled workers.

clock        the event loop that jumps
load         requests: a trace's, or of phases
jump, cache, worker   one engine, computed from event to event
told         what a worker's cache tells the router's index
pool         the workers, their roles, flips with drain
life         one request, as dispatch leads it
job          all of it together: `simulate`
outcome      figures
performance  a timing model as a planner asks it
split        which split of prefill and decode a load wants
setup        all this from a run's configuration
picture      an outcome's curves
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
