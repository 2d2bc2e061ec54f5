"""Fault suite: a test per row of the table of faults.

Tests that take long have the marker `slow_fault`: `make faults` runs them, `make test` does not.
A test with the fixture `fault` records its row of the table in docs/operations/reliability.md:

    row = fault("SIGKILL of the only frontend", "restarted")  # begins a row, and its clock
    row.recovered()  # stops the clock
    row.requests(sent=20, lost=0)

A test that fails makes its last row a shortfall. `--fault-seeds 3` repeats these tests with other
seeds: `fault.chance` draws the process, the moment and the traffic. `--fault-rows FILE` stores the
rows; `make faults SEEDS=3` does both and writes the table.

Markers `cluster` and `vllm` as in the other folders.
"""
