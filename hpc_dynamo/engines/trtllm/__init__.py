"""TensorRT-LLM: `adapter` (entry point), `flags` (topology to command line and options file) and
`pd_protocol` (prefill/decode over NIXL)."""
