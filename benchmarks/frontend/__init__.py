"""Benchmark of the HTTP frontend: targets, load generators and results; see `__main__`."""
