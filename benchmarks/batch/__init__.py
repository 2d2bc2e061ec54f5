"""Benchmark of batch inference; see `__main__`."""
