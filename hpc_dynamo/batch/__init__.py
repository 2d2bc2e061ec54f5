"""Offline runs: prompts from a JSONL file in, answers to a JSONL file out, each exactly once."""
