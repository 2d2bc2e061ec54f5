"""Fault suite: a test per row of the table of faults.

Tests that take long have the marker `slow_fault`: `make faults` runs them, `make test` does not.
Markers `cluster` and `vllm` as in the other folders.
"""
