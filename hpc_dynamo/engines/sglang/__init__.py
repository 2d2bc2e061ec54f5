"""SGLang: `adapter` (entry point), `flags` (topology to command line), `pd_protocol`
(prefill/decode over NIXL), `role_switch` (role changes without a restart) and `prompt_check`
(prompts that would end the engine)."""
