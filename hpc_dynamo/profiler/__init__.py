"""Measures the profile of an engine: `grid` lists the points, `bench` measures them."""
