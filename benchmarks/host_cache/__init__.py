"""Gain of `engine.kv_host_cache_gb` on vLLM: more prefixes than the device cache holds."""
