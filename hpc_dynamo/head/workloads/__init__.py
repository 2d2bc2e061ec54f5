"""Workloads: what a job runs.

    workload         protocol of a workload, and what it is given
    batch            a batch, with batch_prompts for its tokenizer
    serve            an endpoint
    frontend_process one of its frontend processes; frontends: what they have counted
    endpoint_socket  its port
    endpoint_state   what its frontends and its status file show
    sleep_mode       workers that clients put to sleep
    profile          a profile of one worker

A new workload implements Workload and is listed in head.WORKLOADS.
"""
