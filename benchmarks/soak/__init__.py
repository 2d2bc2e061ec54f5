"""A serving job under steady load for half an hour: does anything fail, leak or grow?

    python -m benchmarks.soak                              20 s for the capacity, then 30 minutes
    python -m benchmarks.soak --minutes 5 --capacity 400   80 % of 400 requests a second

The job is what a user starts: `hpc-dynamo serve` here, one prefill and one decode simulator. The
load is open: requests come when they come, streams and whole answers, prompts that share their
start and prompts that do not, and one client in twenty goes away at a random moment. Exit code 1
where a check fails. Short runs are not judged by the growth of their memory.
"""
