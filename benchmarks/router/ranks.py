"""Hit rate of data-parallel ranks, in virtual time: the router is real, engines are modelled.

python -m benchmarks.router.ranks --trace ../shared/traces/mooncake_conversation.jsonl

Every row has the same number of engines with the same caches. Workers of one rank are the
reference. `steered`: the router selects the rank. `engine selects`: the engine sends each request
to its least loaded rank, and the router divides the overlap by the number of ranks.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hpc_dynamo.config import Role, Router
from hpc_dynamo.messages import ONE_CACHE, PrefixCaches
from hpc_dynamo.router import AdmissionLimits
from hpc_dynamo.simulation import (
    EngineModel,
    LatencyTargets,
    SimulatedJob,
    TraceRequest,
    read_trace,
    simulate,
)
from hpc_dynamo.simulation.result import mean, quantile
from hpc_dynamo.simulation.worker import EngineSizes
from hpc_dynamo.timing_model import load_timing

TRACE = Path("../shared/traces/mooncake_conversation.jsonl")
SEQUENCES = 64  # each engine's
HEAD = "| workers x ranks | | KV events | hit rate | TTFT mean / p99 s |\n|---|---|---|---|---|"


def jobs(engines: int, ranks: int, cache_tokens: int) -> Iterator[tuple[str, SimulatedJob]]:
    """Yield each job with the first three columns of its row."""
    sizes = EngineSizes(max_sequences=SEQUENCES, cache_tokens=cache_tokens)
    job = SimulatedJob(
        engine=EngineModel(sizes, load_timing("h100-8b")),
        workers={Role.aggregated: engines},
        targets=LatencyTargets(2.0, 0.05),
        limits=AdmissionLimits(max_requests_per_worker=2 * SEQUENCES),
    )
    limits = AdmissionLimits(max_requests_per_worker=2 * SEQUENCES * ranks)
    several = replace(job, workers={Role.aggregated: engines // ranks}, limits=limits)
    for events in (True, False):
        shown, router = "yes" if events else "no", Router(kv_events=events)
        yield f"| {engines} x 1 | | {shown}", replace(job, router=router, caches=ONE_CACHE)
        caches = PrefixCaches(ranks)
        row = f"| {engines // ranks} x {ranks} | steered | {shown}"
        yield row, replace(several, router=router, caches=caches)
    caches = PrefixCaches(ranks, steered=False)
    row = f"| {engines // ranks} x {ranks} | engine selects | no"
    yield row, replace(several, router=Router(kv_events=False), caches=caches)


def row(job: SimulatedJob, requests: list[TraceRequest]) -> str:
    """Return the measured columns."""
    result = simulate(job, requests)
    ttft = result.ttft_s()
    hits = f"{100 * result.hit_rate:.1f} %"
    return f"| {hits} | {mean(ttft):.2f} / {quantile(ttft, 0.99):.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--requests", type=int, default=0, help="of the trace; 0: all")
    parser.add_argument("--engines", type=int, default=16)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--cache-tokens", type=int, default=400_000, help="of each engine")
    parser.add_argument("--speed", type=float, default=1.0)
    args = parser.parse_args()
    requests = read_trace(args.trace, args.requests, args.speed)
    print(HEAD)
    for ranks in args.ranks:
        for columns, job in jobs(args.engines, ranks, args.cache_tokens):
            print(columns, row(job, requests), flush=True)


if __name__ == "__main__":
    main()
