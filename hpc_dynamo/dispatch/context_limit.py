"""Requests that are longer than the context of the model.

vLLM 0.32 and SGLang 0.5.23 refuse them with status 400, but only after the request has waited for
a worker.
"""

from hpc_dynamo.dispatch.execution import LIMITS, count
from hpc_dynamo.dispatch.refusal import refusal
from hpc_dynamo.engines import Body, field_value


def require_context(body: Body, prompt_tokens: int, context_tokens: int) -> None:
    """Raise RequestFailed if the prompt or the response cannot have its length.

    `prompt_tokens` is the length of the longest prompt, 0 if unknown. `context_tokens` is the
    longest sequence that any worker accepts, 0 if unknown.
    """
    if not context_tokens:
        return
    limit = f"This model's maximum context length is {context_tokens} tokens."
    if prompt_tokens >= context_tokens:
        what = f"{limit} However, your prompt contains {prompt_tokens} input tokens"
        room = "which leaves no room for output tokens. Please reduce the length of the prompt."
        raise refusal(f"{what}, {room}", "input_tokens")
    name = next((name for name in LIMITS if field_value(body.get(name)) is not None), LIMITS[0])
    if (wanted := count(body, name)) > context_tokens:
        what = f"{limit} However, you requested {name}={wanted}. Please request fewer tokens."
        raise refusal(what, name)
