"""TensorRT-LLM's words for a hand-over (`--dialect trtllm`), put on and taken off at the edge.

Inside, a hand-over is vLLM's `kv_transfer_params` in every dialect: they are the opaque state here.
As there, a decode worker that is refused or never asked tells the prefill worker nothing.
Source: TensorRT-LLM 1.3, tensorrt_llm/serve/openai_protocol.py and executor/base_worker.py.
"""

import base64
import binascii
from typing import Any, Literal

import msgspec

from hpc_dynamo.simulator.api_error import Refused
from hpc_dynamo.simulator.sequence import Job
from hpc_dynamo.simulator.transfer import TransferParams


class DisaggregatedParams(msgspec.Struct, forbid_unknown_fields=True):
    """Both ways."""

    request_type: Literal["context_only", "generation_only", "context_and_generation"]
    first_gen_tokens: list[int] | None = None
    ctx_request_id: int | None = None
    encoded_opaque_state: str | None = None
    draft_tokens: list[int] | None = None
    disagg_request_id: int | None = None
    ctx_dp_rank: int | None = None
    ctx_info_endpoint: str | None = None
    schedule_style: int | None = None

    def transfer(self, tokens: list[int] | None) -> TransferParams | None:
        """In vLLM's words, with the prompt's `tokens` where they came along. Raises Refused."""
        if self.request_type == "context_only":
            return TransferParams(do_remote_decode=True)
        if self.request_type != "generation_only":
            return None
        names = ("first_gen_tokens", "ctx_request_id", "encoded_opaque_state")
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise Refused(f"disaggregated_params lacks {', '.join(missing)}")
        return msgspec.structs.replace(self._state(), prompt_token_ids=tokens)

    def _state(self) -> TransferParams:
        try:
            state = base64.b64decode(self.encoded_opaque_state or "", validate=True)
            return msgspec.json.decode(state, type=TransferParams)
        except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Refused(f"encoded_opaque_state cannot be read: {e}") from e


def told(record: dict[str, Any], job: Job, asked: DisaggregatedParams | None) -> dict[str, Any]:
    """An answer `record` of a whole answer, with the hand-over where TensorRT-LLM has it."""
    state = record.pop("kv_transfer_params")
    record["prompt_token_ids"] = job.prompt if job.produce else None
    choice = record["choices"][0]
    choice["disaggregated_params"] = None
    if state and asked:
        params = DisaggregatedParams(
            request_type="context_only",
            first_gen_tokens=job.choices[0].output,
            ctx_request_id=int(job.id.rpartition("-")[2]),
            encoded_opaque_state=base64.b64encode(msgspec.json.encode(state)).decode(),
            disagg_request_id=asked.disagg_request_id,
        )
        choice["disaggregated_params"] = params
    return record
