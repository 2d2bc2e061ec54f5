"""Random faults in a user's own run, for `hpc-dynamo chaos`.

`schedule` selects the faults, `injection` injects them and observes the run.

    schedule.py    faults to inject, from a seed; pure
    processes.py   processes of a run, on this machine or on the nodes of its Slurm job
    on_node.py     program that finds and signals processes on one node
    probe.py       client that sends requests meanwhile
    batch_progress.py   results of a batch instead
    injection.py   injection of the schedule, and recovery after each fault
"""
