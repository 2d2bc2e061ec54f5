"""Benchmark of KV transfers; see `__main__`."""
