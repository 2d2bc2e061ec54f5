"""Checks and measurements on a machine with one NVIDIA GPU; see `__main__`."""
