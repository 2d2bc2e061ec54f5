"""OpenAI's generation requests, with vLLM's additions.

Unknown fields are ignored, as in vLLM, and so are features that the simulator lacks: an input for
a real engine also runs here. Limits and error texts follow vLLM 0.32 (`sampling_params.py`).
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from hpc_dynamo.simulator import prompts, tokenizer
from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.kv_transfer_params import KvTransferParams
from hpc_dynamo.simulator.sequence import SamplingParams
from hpc_dynamo.simulator.trtllm_protocol import DisaggregatedParams, check_signature

Natural = Annotated[int, msgspec.Meta(ge=0)]


class StreamOptions(msgspec.Struct):
    """Token counts in a stream: at its end, or with every chunk."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class JsonSchema(msgspec.Struct):
    """The `json_schema` of a response format."""

    schema: dict[str, Any] = {}


class ResponseFormat(msgspec.Struct):
    """Field `response_format`."""

    type: str = "text"
    json_schema: JsonSchema | None = None

    def fixed_output(self) -> str:
        """Return the first of a JSON schema's `examples`, `{}` without one, empty for text."""
        if self.type == "text":
            return ""
        schema = self.json_schema.schema if self.json_schema else {}
        return msgspec.json.encode((schema.get("examples") or [{}])[0]).decode()


class GenerationRequest(msgspec.Struct, kw_only=True):
    """Fields that completions and chat have in common."""

    model: str | None = None
    max_tokens: int | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = 1
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None  # checked, not used
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
    rid: str | None = None  # SGLang: id of the request
    routed_dp_rank: int | None = None  # SGLang: data-parallel rank that runs the request
    disagg_prefill_dp_rank: int | None = None  # SGLang: the one that computes the prompt
    response_format: ResponseFormat | None = None

    @property
    def choices(self) -> int:
        """Return the number of outputs per prompt."""
        return self.n or 1

    @property
    def num_logprobs(self) -> int | None:
        """Return the number of alternatives per token, None without log-probabilities."""
        return None

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

    def read_trtllm_params(self, headers: Mapping[str, str], signing_key: str) -> None:
        """Set `kv_transfer_params` from TensorRT-LLM's fields. Raises RequestRejected, also if they
        are not signed with a key that is not empty."""
        check_signature(self.disaggregated_params, headers, signing_key)
        if self.kv_transfer_params is not None:
            raise RequestRejected("kv_transfer_params: Extra inputs are not permitted")
        if params := self.disaggregated_params:
            self.kv_transfer_params = params.kv_transfer_params(self.prompt_token_ids)

    def sampling(self, prompt_tokens: int, max_model_len: int) -> SamplingParams:
        """Return the output limits after a prompt of this length. Raises RequestRejected."""
        name, wanted = self.limit
        if wanted is not None and wanted > max_model_len:
            what = f"{name}={wanted} cannot be greater than max_model_len={max_model_len}."
            raise RequestRejected(f"{what} Please request fewer output tokens.", name)
        room = max_model_len - prompt_tokens
        most = room if wanted is None else min(wanted, room)
        if most < 1:
            raise RequestRejected(f"max_tokens must be at least 1, got {most}.", "max_tokens")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in stop:
            raise RequestRejected("stop cannot contain an empty string.", "stop")
        text = self.response_format.fixed_output() if self.response_format else ""
        fixed = tuple(tokenizer.encode(text)) if text else ()
        return SamplingParams(most, self.ignore_eos, tuple(stop), fixed)


class CompletionRequest(GenerationRequest, kw_only=True):
    """Body of /v1/completions. The default of `max_tokens` is OpenAI's."""

    prompt: prompts.PromptField
    max_tokens: int | None = 16
    logprobs: Natural | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

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
        raise RequestRejected(what, "model", status=404)
