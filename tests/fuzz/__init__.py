"""Fuzzing: mutated valid inputs for every reader of data that another process or user has written.

Run `make fuzz SECONDS=3600 SEED=1`. A failure prints the seed and the input.
"""
