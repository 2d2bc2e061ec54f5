"""OpenAI's generation requests, with vLLM's additions.

Only fields that the simulator needs are typed. Unknown fields are ignored, as in vLLM. Known
features that the simulator lacks are rejected, not ignored. Defaults, limits and error texts
follow vLLM 0.32 (`entrypoints/openai/*/protocol.py`, `sampling_params.py`).
"""

from typing import Annotated, Any

import msgspec

from hpc_dynamo.simulator import prompts, tokenizer
from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.kv_transfer_params import KvTransferParams
from hpc_dynamo.simulator.sequence import SamplingParams
from hpc_dynamo.simulator.trtllm_protocol import DisaggregatedParams

Natural = Annotated[int, msgspec.Meta(ge=0)]

COMPLETION_MAX_TOKENS = 16  # OpenAI's default, as in vLLM; chat has no limit but the context
MAX_LOGPROBS = 20


class StreamOptions(msgspec.Struct):
    """Token counts in a stream: at its end, or with every chunk."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class JsonSchema(msgspec.Struct):
    """The `json_schema` of a response format. `schema` may have `examples`."""

    schema: dict[str, Any] = {}


class ResponseFormat(msgspec.Struct):
    """Field `response_format`."""

    type: str = "text"
    json_schema: JsonSchema | None = None

    def fixed_output(self) -> str:
        """Return the output for this format, empty if any text is allowed.

        It is `{}` for a JSON object and the first of the `examples` of a JSON schema. Raises
        RequestRejected for formats that the simulator cannot satisfy.
        """
        if self.type == "text":
            return ""
        if self.type == "json_object":
            return "{}"
        examples = self.json_schema and self.json_schema.schema.get("examples")
        if self.type != "json_schema" or not examples:
            what = f"the simulator cannot satisfy {self.type}; it needs `examples` in a JSON schema"
            raise RequestRejected(what, param="response_format")
        return msgspec.json.encode(examples[0]).decode()


class GenerationRequest(msgspec.Struct, kw_only=True):
    """Fields that completions and chat have in common."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: Natural = 0
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = 1
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    kv_transfer_params: KvTransferParams | None = None
    disaggregated_params: DisaggregatedParams | None = None
    prompt_token_ids: list[int] | None = None
    bootstrap_host: str | None = None  # SGLang: address of the bootstrap server
    bootstrap_port: int | None = None
    bootstrap_room: Natural | None = None  # SGLang: number of the request there
    response_format: ResponseFormat | None = None
    echo: bool | None = False
    structured_outputs: Any = None

    @property
    def choices(self) -> int:
        """Return the number of outputs per prompt."""
        return self.n or 1

    @property
    def limit(self) -> tuple[str, int | None]:
        """Return name and value of the field that limits the output length."""
        return "max_tokens", self.max_tokens

    @property
    def usage_in_stream(self) -> tuple[bool, bool]:
        """Return whether a stream has token counts at its end, and whether in every chunk."""
        options = self.stream_options or StreamOptions()
        at_end = bool(options.include_usage)
        return at_end, at_end and bool(options.continuous_usage_stats)

    def check(self, *models: str) -> None:
        """Raise RequestRejected for an unknown model and for contradictory or missing features."""
        check_model(self.model, *models)
        if self.stream_options is not None and not self.stream:
            what = "Stream options can only be defined when `stream=True`."
            raise RequestRejected(what, param="stream_options")
        if self.choices > 1 and self.temperature == 0:
            what = f"n must be 1 when using greedy sampling, got {self.n}."
            raise RequestRejected(what, param="n")
        for name in ("structured_outputs", "echo"):
            if getattr(self, name):
                raise RequestRejected(f"the simulator does not support {name}", param=name)

    def read_trtllm_params(self) -> None:
        """Set `kv_transfer_params` from TensorRT-LLM's fields. Raises RequestRejected."""
        if self.kv_transfer_params is not None:
            raise RequestRejected("kv_transfer_params: Extra inputs are not permitted")
        if params := self.disaggregated_params:
            self.kv_transfer_params = params.kv_transfer_params(self.prompt_token_ids)

    def sampling(self, prompt_tokens: int, max_model_len: int) -> SamplingParams:
        """Return the output limits after a prompt of this length. Raises RequestRejected."""
        name, wanted = self.limit
        if wanted is not None and wanted > max_model_len:
            what = f"{name}={wanted} cannot be greater than max_model_len={max_model_len}."
            raise RequestRejected(f"{what} Please request fewer output tokens.", param=name)
        room = max_model_len - prompt_tokens
        most = room if wanted is None else min(wanted, room)
        if most < 1:
            what = f"max_tokens must be at least 1, got {most}."
            raise RequestRejected(what, param="max_tokens")
        if self.min_tokens > most:
            what = f"min_tokens must be less than or equal to max_tokens={most}"
            raise RequestRejected(f"{what}, got {self.min_tokens}.", param="min_tokens")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in stop:
            raise RequestRejected("stop cannot contain an empty string.", param="stop")
        text = self.response_format.fixed_output() if self.response_format else ""
        fixed = tuple(tokenizer.encode(text)) if text else ()
        return SamplingParams(most, self.min_tokens, self.ignore_eos, tuple(stop), fixed)


class CompletionRequest(GenerationRequest, kw_only=True):
    """Body of /v1/completions."""

    prompt: prompts.PromptField
    max_tokens: int | None = COMPLETION_MAX_TOKENS
    logprobs: int | None = None

    def num_logprobs(self) -> int | None:
        """Return the number of alternatives per token, None without log-probabilities."""
        return None if self.logprobs is None else checked_logprobs(self.logprobs)

    def prompts(self, max_model_len: int) -> list[list[int]]:
        """Return the token ids of each prompt. Raises RequestRejected."""
        return prompts.from_field(self.prompt, max_model_len, "prompt")


class DetokenizeRequest(msgspec.Struct):
    """Body of vLLM's /detokenize."""

    tokens: list[Annotated[int, msgspec.Meta(ge=0, lt=tokenizer.VOCABULARY)]]


def check_model(requested: str | None, *models: str) -> None:
    """Raise RequestRejected with status 404 for an unknown model."""
    if requested not in (None, "", *models):
        what = f"The model `{requested}` does not exist. Valid aliases: {', '.join(models)}."
        raise RequestRejected(what, status=404, param="model")


def checked_logprobs(wanted: int) -> int:
    """Return a number of log-probabilities that is allowed. Raises RequestRejected."""
    if wanted < 0 and wanted != -1:
        raise RequestRejected("`logprobs` must be a positive value or -1.", param="logprobs")
    if not 0 <= wanted <= MAX_LOGPROBS:
        what = f"Requested sample logprobs of {wanted if wanted > 0 else tokenizer.VOCABULARY}, "
        what += f"which is greater than max allowed: {MAX_LOGPROBS}"
        raise RequestRejected(what, param="logprobs")
    return wanted
