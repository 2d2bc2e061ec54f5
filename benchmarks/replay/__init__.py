"""A production trace replayed: does the router find what is cached, and what is that worth?

    python -m benchmarks.replay --quick            minutes: 400 requests, our policies
    python -m benchmarks.replay --out replay       3,000 requests, Dynamo too: half an hour
    python -m benchmarks.replay --requests 0 --repeats 3 --out replay      the whole trace: hours
    python -m benchmarks.replay --systems kv --topology aggregated \\
        --sweep router.overlap_weight=0.5,1,2 router.temperature=0,0.5    its weights in a grid
    python -m benchmarks.replay --check-timing     do both modelled engines take the same time?

Requests come when the trace says, however many are under way, to eight modelled engines with
bounded caches behind each system in turn: a serving job of ours, as `hpc-dynamo serve` starts it,
under each routing policy, and NVIDIA Dynamo before its mock engines. Workers are all the same
(aggregated), or half of them prefill for the others (disaggregated).

What is scaled: time, by --compress (arrivals come ten times as fast, engines compute ten times as
fast), and size, by --shrink (a token, and so a block of the cache, stands for eight of the
trace's; each takes eight times as long). Hit rates, queues and the share of time that engines
are busy stay as they are in the trace. All times that are shown are the trace's own again, so what
a frontend itself takes counts --compress times.

The hit rate is the share of prompt tokens found in the prefix caches where prompts are computed,
as the engines count it (Dynamo's by the usage of its answers, or where roles are apart by its
router). It stands beside an oracle's, computed from the trace alone: see oracle.py. Goodput counts
the answers whose TTFT and mean ITL both kept their targets, a second.
"""
