r"""Replays a production trace: cache hit rates of routing policies, and their effect.

    python -m benchmarks.replay --quick            minutes: 400 requests, policies of hpc_dynamo
    python -m benchmarks.replay --out replay       3,000 requests, Dynamo too: half an hour
    python -m benchmarks.replay --requests 0 --repeats 3 --out replay      the whole trace: hours
    python -m benchmarks.replay --systems kv --topology aggregated \
        --sweep router.overlap_weight=0.5,1,2 router.temperature=0,0.5    a grid of settings
    python -m benchmarks.replay --check-timing     compare the timing of both modelled engines

Requests arrive at the times of the trace (open loop). Each system in turn has eight modelled
engines with bounded caches: `hpc-dynamo serve` under each routing policy, and NVIDIA Dynamo with
its mock engines. All workers are aggregated, or half of them prefill for the others
(disaggregated).

Time is scaled by --compress: requests arrive and engines compute ten times as fast. Size is scaled
by --shrink: a token, and so a cache block, stands for eight of the trace and takes eight times as
long. Hit rates, queues and utilization stay as in the trace. All results are in the time of the
trace, so that the own time of a frontend counts --compress times.

The hit rate is the share of prompt tokens in the prefix caches of the workers that compute prompts,
as the engines count it. For Dynamo it is the usage in its responses, or if disaggregated, the count
of its router. oracle.py computes an upper reference from the trace. Goodput counts the responses
per second with TTFT and mean ITL within their targets.
"""
