"""Serve a steady load for half an hour and check for errors, leaks and growth.

    python -m benchmarks.soak                              20 s for the capacity, then 30 minutes
    python -m benchmarks.soak --minutes 5 --capacity 400   80 % of 400 requests per second
    python -m benchmarks.soak --minutes 60 --faults 1      one random fault per minute, from seed 1

The job is `hpc-dynamo serve` on this machine with one prefill and one decode simulator. Requests
arrive at random times, independent of responses. Half of them are streams, half of the prompts
share a prefix, and one client in twenty disconnects at a random moment. The exit code is 1 if a
check fails. Memory growth is not checked in short runs. Faults are a SIGKILL or a SIGSTOP of 5 to
25 s of an engine or a frontend, as by `hpc-dynamo chaos`. Clients try twice more if the connection
fails or the job answers 503, as OpenAI's client does.
"""
