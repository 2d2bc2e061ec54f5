"""Batch inference: requests from a JSONL file, results in a JSONL file, each exactly once.

    input.jsonl -> input_file: checks every line before anything starts
                -> prefix_order: sorts requests so that shared prefixes reach one cache
                -> runner: keeps the decode workers full, with retries
                   crash_isolation: retries requests that may crash an engine
                -> ledger: appends each result to a part, which survives crashes
                -> output.jsonl, errors.jsonl, in the order of the input

`report` reads the engines' metrics for the summary, `exit_status` decides the exit code.
"""
