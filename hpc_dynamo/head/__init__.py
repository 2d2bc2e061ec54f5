"""The head of a job: the task that controls one attempt.

    head        Head: starts all parts below, runs the workload, shuts down in order
    standalone  the same without agents, for `hpc-dynamo route`
    lifecycle   what both share: outcome, status file, signals
    workloads/  what the job runs: a batch, an endpoint or a profile
    membership/ agents and workers, as they join, report and leave
    scaling/    role changes, extra jobs, job handover
    telemetry/  metrics: one table of families, one module per subject

The docstring of each folder maps its files. This file imports nothing, so that the task of a node
does not load the head, which runs in a process of its own.
"""
