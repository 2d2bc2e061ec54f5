"""Shared by benchmarks: processes under test, environments of peers, serving jobs, prompts."""
