"""Benchmark of the exchange of addresses; see `__main__`."""
