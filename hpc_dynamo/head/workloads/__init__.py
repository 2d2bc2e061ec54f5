"""Workloads: what a job runs.

    workload         protocol of a workload, and what it is given
    batch            a batch, with batch_prompts for its tokenizer
    serve            an endpoint
    frontends        counts of its frontend processes
    endpoint_socket  its port
    sleep_mode       workers that clients put to sleep
    profile          a profile of one worker

A new workload implements Workload and is listed in head.WORKLOADS.
"""
