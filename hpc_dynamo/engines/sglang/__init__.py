"""SGLang: `adapter` (entry point), `flags` (topology to command line), `pd_protocol`
(prefill/decode over NIXL) and `prompt_check` (prompts that would end the engine)."""
