"""Random faults in a user's own run, for `hpc-dynamo chaos`.

`schedule` selects the faults, `injection` injects them and observes the run.

    schedule.py    faults to inject, from a seed; pure
    processes.py   processes of a run, on this machine or on the nodes of its Slurm job
    on_node.py     program that finds and signals processes on one node
    probe.py       results of requests meanwhile, and when they were answered
    client_probe.py batch_probe.py   requests of a client; results of a batch
    injection.py   injection of the schedule, and recovery after each fault
"""
