"""The planner compared with an oracle, static splits and NVIDIA Dynamo's planner.

    python -m benchmarks.planner              both loads, in virtual time
    python -m benchmarks.planner --real       real simulator ranks compared with virtual time

Two loads run on 16 modelled ranks behind the real router, in virtual time.
The load `turning` changes from prompt-heavy to answer-heavy and back; `trace` is a
production trace. The tables show how many requests met both latency targets, and at what cost.
"""
