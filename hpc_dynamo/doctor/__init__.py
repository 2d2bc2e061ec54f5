"""Looks over the nodes of a job: what would fail or slow down a run, and what mends it.

`task` runs on every node for `hpc-dynamo doctor`; `preflight` is the part of it that takes no
time, which every job runs before it loads a model.
"""
