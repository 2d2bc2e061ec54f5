"""OpenAI's responses: complete, or as the events of a stream.

The shapes are those of vLLM 0.32 (`entrypoints/openai/*/serving.py`).
"""

import time
from itertools import accumulate
from typing import Any, ClassVar

import msgspec

from hpc_dynamo.http.sse import DONE_EVENT, encode_event
from hpc_dynamo.simulator.chat_request import ChatRequest
from hpc_dynamo.simulator.generation_request import CompletionRequest
from hpc_dynamo.simulator.sequence import OutputSequence, SequenceGroup
from hpc_dynamo.simulator.token_generator import WORDS
from hpc_dynamo.simulator.tokenizer import decode
from hpc_dynamo.simulator.trtllm_protocol import as_trtllm

Json = dict[str, Any]
AnyRequest = CompletionRequest | ChatRequest

_SLOT, _SLOT_IN_JSON = "\0", rb"\u0000"  # cannot occur in a header line


class ResponseBuilder:
    """Builds the response to one request.

    With `report_cached` the usage has the number of prefix hits. With `trtllm` a hand-off has
    TensorRT-LLM's form. `unfinished` are the fields of a choice that follow a new text.
    """

    unfinished: ClassVar[Json] = {"logprobs": None, "finish_reason": None, "stop_reason": None}

    def __init__(
        self, request: AnyRequest, request_id: str, model: str, *, report_cached: bool, trtllm: bool
    ) -> None:
        self._request, self._report_cached, self._trtllm = request, report_cached, trtllm
        self._chat = isinstance(request, ChatRequest)
        self._usage_at_end, self._usage_in_chunks = request.usage_in_stream
        self._plain = request.num_logprobs is None and not self._usage_in_chunks
        prefix, kind = (
            ("chatcmpl", "chat.completion") if self._chat else ("cmpl", "text_completion")
        )
        head = {"id": f"{prefix}-{request_id}", "created": int(time.time()), "model": model}
        self._head = head | {"object": kind}
        self._chunk_head = head | {"object": f"{kind}.chunk" if self._chat else kind}
        self._chunk_end = Json()  # fields of a chunk after its choices
        self._templates = dict[int, tuple[bytes, bytes]]()
        self._reported = dict[int, int]()  # tokens whose log-probabilities were sent, by choice

    def complete(self, groups: list[SequenceGroup]) -> Json:
        """Return the response to a request without a stream."""
        choices = list[Json]()
        for i, each in enumerate(sequence for group in groups for sequence in group.choices):
            text = each.new_text()
            content: Json = {"message": self._chat_message(text)} if self._chat else {"text": text}
            choices.append({"index": i, **content, **self._end(i, each)})
        response = {**self._head, "choices": choices, "usage": self._usage(groups)}
        response["kv_transfer_params"] = groups[0].kv_transfer_params
        if self._trtllm:
            return as_trtllm(response, groups[0], self._request.disaggregated_params)
        return response

    def opening(self, sequences: list[OutputSequence]) -> bytes:
        """Return the events before any token: the role of each message of a chat."""
        if not self._chat:
            return b""
        delta = {"delta": self._chat_message(""), **self.unfinished}
        return b"".join(self._event(i, each, delta, 0) for i, each in enumerate(sequences))

    def chunk(self, index: int, sequence: OutputSequence) -> bytes:
        """Return the event with a choice's new output, empty if there is none."""
        text = sequence.new_text()
        if sequence.finish_reason is None and self._plain:
            return self._fill_template(index, text) if text else b""
        if not (text or sequence.finish_reason or self._request.num_logprobs is not None):
            return b""
        choice = self._delta(text) | self._end(index, sequence)
        return self._event(index, sequence, choice, sequence.output_length)

    def closing(self, groups: list[SequenceGroup]) -> bytes:
        """Return the events after the last token."""
        if not self._usage_at_end:
            return DONE_EVENT
        last = {**self._chunk_head, "choices": [], "usage": self._usage(groups)}
        return encode_event(last) + DONE_EVENT

    def _chat_message(self, text: str) -> Json:
        return {"role": "assistant", "content": text}

    def _delta(self, text: str) -> Json:
        return {"delta": {"content": text}} if self._chat else {"text": text}

    def _fill_template(self, index: int, text: str) -> bytes:
        """Return the usual event. Everything except the text is the same each time."""
        template = self._templates.get(index)
        if template is None:
            choice = {"index": index, **self._delta(_SLOT), **self.unfinished}
            made = encode_event({**self._chunk_head, "choices": [choice], **self._chunk_end})
            head, _, tail = made.partition(_SLOT_IN_JSON)
            self._templates[index] = template = (head, tail)
        return template[0] + msgspec.json.encode(text)[1:-1] + template[1]

    def _event(self, index: int, sequence: OutputSequence, choice: Json, length: int) -> bytes:
        choices = [{"index": index, **choice}]
        chunk: Json = {**self._chunk_head, "choices": choices, **self._chunk_end}
        if self._usage_in_chunks:
            chunk["usage"] = self._chunk_usage(sequence, length)
        return encode_event(chunk)

    def _chunk_usage(self, sequence: OutputSequence, length: int) -> Json:
        return counts(sequence.prompt_tokens, length)

    def _end(self, index: int, sequence: OutputSequence) -> Json:
        """Return the fields of a choice after its text, with new log-probabilities."""
        return {
            "logprobs": self._new_logprobs(index, sequence),
            "finish_reason": sequence.finish_reason,
            "stop_reason": sequence.stop_reason,
        }

    def _new_logprobs(self, index: int, sequence: OutputSequence) -> Json | None:
        count = self._request.num_logprobs
        if count is None:
            return None
        start = self._reported.get(index, 0)
        self._reported[index] = sequence.output_length
        tokens = sequence.output_tokens[start:]
        rows = [_logprobs(decode([token]), count) for token in tokens]
        offset = len(decode(sequence.output_tokens[:start]))
        return {"content": rows} if self._chat else _completion_logprobs(rows, offset)

    def _usage(self, groups: list[SequenceGroup]) -> Json:
        prompt = sum(len(group.prompt) for group in groups)
        output = sum(each.output_length for group in groups for each in group.choices)
        details = None
        params = self._request.disaggregated_params
        if params and params.ctx_usage:
            details = params.ctx_usage.get("prompt_tokens_details")
        elif self._report_cached:
            # Only the last prompt is reported, as in vLLM.
            details = {"cached_tokens": self._prefix_hits(groups[-1])}
        return {**counts(prompt, output), "prompt_tokens_details": details}

    def _prefix_hits(self, group: SequenceGroup) -> int:
        """Return the prefill rank's hits on a decode rank, whose own include pulled tokens."""
        params = self._request.kv_transfer_params
        if params and params.do_remote_prefill and params.remote_prefill_cached_tokens is not None:
            return params.remote_prefill_cached_tokens
        return group.choices[0].cached_tokens


def _logprobs(token: str, count: int) -> Json:
    """Return made-up log-probabilities of a token and of `count` - 1 alternatives."""
    others = (f" {word}" for word in WORDS[:count])
    texts = [token, *(other for other in others if other != token)][: max(1, count)]
    rows: list[Json] = [
        {"token": text, "logprob": -0.5 - i, "bytes": list(text.encode())}
        for i, text in enumerate(texts)
    ]
    return {**rows[0], "top_logprobs": rows if count else []}


def _completion_logprobs(rows: list[Json], offset: int) -> Json:
    """Return log-probabilities in the form of /v1/completions; `offset` is that of the first."""
    tokens = [row["token"] for row in rows]
    starts = accumulate(map(len, tokens[:-1]), initial=offset) if tokens else ()
    alternatives = ({top["token"]: top["logprob"] for top in row["top_logprobs"]} for row in rows)
    return {
        "text_offset": [*starts],
        "token_logprobs": [row["logprob"] for row in rows],
        "tokens": tokens,
        "top_logprobs": [
            top or {row["token"]: row["logprob"]}
            for row, top in zip(rows, alternatives, strict=True)
        ],
    }


def counts(prompt: int, output: int) -> Json:
    """Return a usage without details."""
    total = prompt + output
    return {"prompt_tokens": prompt, "total_tokens": total, "completion_tokens": output}
