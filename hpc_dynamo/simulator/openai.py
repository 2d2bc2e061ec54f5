"""OpenAI's completions and chat, with vLLM's additions: requests in.

Only what the simulator needs is typed; unknown fields are ignored as vLLM ignores them, and
what it cannot do is refused and not dropped. Defaults, limits and wording follow vLLM 0.32
(`entrypoints/openai/*/protocol.py`, `sampling_params.py`).
"""

from typing import Annotated, Any

import msgspec

from hpc_dynamo.simulator import prompts, tokenizer
from hpc_dynamo.simulator.api_error import Refused
from hpc_dynamo.simulator.json_schema_sampler import Schema, instance
from hpc_dynamo.simulator.sequence import Sampling
from hpc_dynamo.simulator.transfer import TransferParams
from hpc_dynamo.simulator.trtllm_protocol import DisaggregatedParams

Natural = Annotated[int, msgspec.Meta(ge=0)]

COMPLETION_MAX_TOKENS = 16  # OpenAI's default, kept by vLLM; chat goes on to the context's end
MOST_LOGPROBS = 20


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class NamedSchema(msgspec.Struct):
    schema: Schema = True


class ResponseFormat(msgspec.Struct):
    type: str = "text"
    json_schema: NamedSchema | None = None

    def script(self) -> str:
        """The answer that the format asks for; empty where any text will do."""
        if self.type == "json_schema" and self.json_schema is None:
            what = "When response_format type is 'json_schema', the 'json_schema' field must"
            raise Refused(f"{what} be provided.", param="response_format")
        if self.json_schema is not None:
            return instance(self.json_schema.schema)
        if self.type not in ("text", "json_object"):
            raise Refused(f"the simulator has no format {self.type}", param="response_format")
        return "" if self.type == "text" else "{}"


class Common(msgspec.Struct, kw_only=True):
    """Fields of both endpoints."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: Natural = 0
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = 1
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    kv_transfer_params: TransferParams | None = None
    disaggregated_params: DisaggregatedParams | None = None
    prompt_token_ids: list[int] | None = None
    bootstrap_host: str | None = None  # SGLang's: where the prefill rank meets others ...
    bootstrap_port: int | None = None
    bootstrap_room: Natural | None = None  # ... and the number of the request there
    echo: bool | None = False
    response_format: ResponseFormat | None = None
    structured_outputs: Any = None

    @property
    def choices(self) -> int:
        """How many answers a prompt gets."""
        return self.n or 1

    @property
    def limit(self) -> tuple[str, int | None]:
        """The field that says how long the answer may be, and what it says."""
        return "max_tokens", self.max_tokens

    @property
    def usage_in_stream(self) -> tuple[bool, bool]:
        """Whether a stream ends with token counts, and whether each of its chunks has them."""
        options = self.stream_options or StreamOptions()
        at_end = bool(options.include_usage)
        return at_end, at_end and bool(options.continuous_usage_stats)

    def check(self, *names: str) -> None:
        """Raises Refused for another model and for what does not go together."""
        check_model(self.model, *names)
        if self.stream_options is not None and not self.stream:
            what = "Stream options can only be defined when `stream=True`."
            raise Refused(what, param="stream_options")
        if self.choices > 1 and self.temperature == 0:
            raise Refused(f"n must be 1 when using greedy sampling, got {self.n}.", param="n")
        if self.structured_outputs is not None:
            raise Refused("the simulator knows response_format only", param="structured_outputs")

    def as_trtllm(self) -> None:
        """Takes the hand-over from where TensorRT-LLM has it. Raises Refused."""
        if self.kv_transfer_params is not None:
            raise Refused("kv_transfer_params: Extra inputs are not permitted")
        params = self.disaggregated_params
        self.kv_transfer_params = params.transfer(self.prompt_token_ids) if params else None

    def script(self) -> str:
        """The text that the answer has to be; empty where any will do. Raises Refused."""
        return self.response_format.script() if self.response_format else ""

    def sampling(self, prompt_tokens: int, max_model_len: int) -> Sampling:
        """Raises Refused for a wish that no answer can fulfil."""
        name, wanted = self.limit
        if wanted is not None and wanted > max_model_len:
            what = f"{name}={wanted} cannot be greater than max_model_len={max_model_len}."
            raise Refused(f"{what} Please request fewer output tokens.", param=name)
        room = max_model_len - prompt_tokens
        most = room if wanted is None else min(wanted, room)
        if most < 1 and not (wanted == 0 and self.echo):
            raise Refused(f"max_tokens must be at least 1, got {most}.", param="max_tokens")
        most = max(1, most)  # with echo alone one is made and not shown
        if self.min_tokens > most:
            what = f"min_tokens must be less than or equal to max_tokens={most}"
            raise Refused(f"{what}, got {self.min_tokens}.", param="min_tokens")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in stop:
            raise Refused("stop cannot contain an empty string.", param="stop")
        text = self.script()
        script = tokenizer.encode(text) if text else []
        return Sampling(most, self.min_tokens, self.ignore_eos, tuple(stop), tuple(script))


class CompletionRequest(Common, kw_only=True):
    """Body of /v1/completions."""

    prompt: prompts.Prompts
    max_tokens: int | None = COMPLETION_MAX_TOKENS
    logprobs: int | None = None

    def alternatives(self) -> int | None:
        """How many tokens have a log-probability at each place; None: not asked for."""
        return None if self.logprobs is None else alternatives(self.logprobs)

    def prompts(self, max_model_len: int) -> list[list[int]]:
        """Token ids of each prompt. Raises Refused."""
        return prompts.from_any(self.prompt, max_model_len, "prompt")


class DetokenizeRequest(msgspec.Struct):
    tokens: list[Annotated[int, msgspec.Meta(ge=0, lt=tokenizer.VOCABULARY)]]


def check_model(asked: str | None, *names: str) -> None:
    """Raises Refused with 404."""
    if asked not in (None, "", *names):
        what = f"The model `{asked}` does not exist. Valid aliases: {', '.join(names)}."
        raise Refused(what, status=404, param="model")


def alternatives(wanted: int) -> int:
    """A checked number of them. Raises Refused."""
    if wanted < 0 and wanted != -1:
        raise Refused("`logprobs` must be a positive value or -1.", param="logprobs")
    if not 0 <= wanted <= MOST_LOGPROBS:
        what = f"Requested sample logprobs of {wanted if wanted > 0 else tokenizer.VOCABULARY}, "
        raise Refused(f"{what}which is greater than max allowed: {MOST_LOGPROBS}", param="logprobs")
    return wanted
