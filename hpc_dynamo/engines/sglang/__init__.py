"""SGLang. Start at `adapter`.

`flags`: topology to command line. `pd_protocol`: prefill and decode on two workers. `role_switch`:
role changes without a restart. `prompt_check`: prompts that would end the engine.
"""
