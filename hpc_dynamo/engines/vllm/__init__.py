"""vLLM: `adapter` (entry point), `flags` (topology to command line), `shards` (workers over several
nodes) and `pd_protocol` (prefill/decode over NIXL)."""
