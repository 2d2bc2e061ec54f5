"""OpenAI's responses: complete, or as the events of a stream.

The shapes are those of vLLM 0.32 (`entrypoints/openai/*/serving.py`).
"""

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from hpc_dynamo.http.sse import DONE_EVENT, encode_event
from hpc_dynamo.simulator.chat_request import ChatRequest
from hpc_dynamo.simulator.generation_request import CompletionRequest
from hpc_dynamo.simulator.sequence import OutputSequence, SequenceGroup
from hpc_dynamo.simulator.token_generator import token_logprobs
from hpc_dynamo.simulator.tokenizer import decode
from hpc_dynamo.simulator.trtllm_protocol import as_trtllm

Json = dict[str, Any]
AnyRequest = CompletionRequest | ChatRequest

_SLOT, _SLOT_IN_JSON = "\0", rb"\u0000"  # cannot occur in a header line
_UNFINISHED: Json = {"logprobs": None, "finish_reason": None, "stop_reason": None}


class CompletionFormat:
    """JSON of the choices of /v1/completions."""

    id_prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"
    opening: Sequence[Json] = ()  # deltas before any text

    def complete(self, text: str) -> Json:
        return {"text": text}

    delta = complete

    def logprobs(self, tokens: Sequence[int], start: int, count: int, offset: int) -> Json:
        """Return the log-probabilities of `tokens`, with `count` alternatives per token.

        `start` and `offset` are the position of the first token and of its first character.
        """
        tables = [token_logprobs(t, start + i, max(1, count)) for i, t in enumerate(tokens)]
        texts = [decode([token]) for token in tokens]
        return {
            "text_offset": [offset + sum(map(len, texts[:i])) for i in range(len(texts))],
            "token_logprobs": [table[0][1] for table in tables],
            "tokens": texts,
            "top_logprobs": [{decode([t]): value for t, value in table} for table in tables],
        }


class ChatFormat:
    """JSON of the choices of /v1/chat/completions."""

    id_prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    opening: Sequence[Json] = ({"delta": {"role": "assistant", "content": ""}},)

    def complete(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text}}

    def delta(self, text: str) -> Json:
        return {"delta": {"content": text}}

    def logprobs(self, tokens: Sequence[int], start: int, count: int, offset: int) -> Json:
        """See CompletionFormat. `offset` is not used."""
        rows = list[Json]()
        for i, token in enumerate(tokens):
            best, *others = map(_row, token_logprobs(token, start + i, max(1, count)))
            rows.append({**best, "top_logprobs": [best, *others] if count else []})
        return {"content": rows}


def _row(entry: tuple[int, float]) -> Json:
    text = decode([entry[0]])
    return {"token": text, "logprob": entry[1], "bytes": list(text.encode())}


class ResponseBuilder:
    """Builds the response to one request.

    With `report_cached` the usage has the number of prefix hits. With `trtllm` a hand-off has
    TensorRT-LLM's form. Raises RequestRejected for contradictory log-probability options.
    """

    def __init__(
        self,
        request: AnyRequest,
        request_id: str,
        model: str,
        *,
        report_cached: bool,
        trtllm: bool = False,
    ) -> None:
        chat = isinstance(request, ChatRequest)
        self._format = ChatFormat() if chat else CompletionFormat()
        self._num_logprobs = request.num_logprobs()
        self._usage_at_end, self._usage_in_chunks = request.usage_in_stream
        self._request, self._report_cached, self._trtllm = request, report_cached, trtllm
        name, created = f"{self._format.id_prefix}-{request_id}", int(time.time())
        self._head = {"id": name, "object": self._format.kind, "created": created, "model": model}
        self._chunk_head = {**self._head, "object": self._format.chunk_kind}
        self._plain = self._num_logprobs is None and not self._usage_in_chunks
        self._templates = dict[int, tuple[bytes, bytes]]()
        self._reported = dict[int, tuple[int, int]]()  # tokens and characters with logprobs

    def complete(self, groups: list[SequenceGroup]) -> Json:
        """Return the response to a request without a stream."""
        sequences = [sequence for group in groups for sequence in group.choices]
        choices = [
            {"index": i, **self._format.complete(each.new_text()), **self._end(i, each)}
            for i, each in enumerate(sequences)
        ]
        response = {**self._head, "choices": choices, "usage": self._usage(groups)}
        response["kv_transfer_params"] = groups[0].kv_transfer_params
        if self._trtllm:
            return as_trtllm(response, groups[0], self._request.disaggregated_params)
        return response

    def opening(self, sequences: list[OutputSequence]) -> bytes:
        """Return the events before any token."""
        return b"".join(
            self._event(i, each, delta, _UNFINISHED, 0)
            for i, each in enumerate(sequences)
            for delta in self._format.opening
        )

    def chunk(self, index: int, sequence: OutputSequence) -> bytes:
        """Return the event with a choice's new output, empty if there is none."""
        text = sequence.new_text()
        if sequence.finish_reason is None and self._plain:
            return self._fill_template(index, text) if text else b""
        if not (text or sequence.finish_reason or self._num_logprobs is not None):
            return b""
        delta, end = self._format.delta(text), self._end(index, sequence)
        return self._event(index, sequence, delta, end, sequence.output_length)

    def closing(self, groups: list[SequenceGroup]) -> bytes:
        """Return the events after the last token."""
        if not self._usage_at_end:
            return DONE_EVENT
        return (
            encode_event({**self._chunk_head, "choices": [], "usage": self._usage(groups)})
            + DONE_EVENT
        )

    def _fill_template(self, index: int, text: str) -> bytes:
        """Return the usual event. Everything except the text is the same each time."""
        template = self._templates.get(index)
        if template is None:
            choice = {"index": index, **self._format.delta(_SLOT), **_UNFINISHED}
            made = encode_event({**self._chunk_head, "choices": [choice]})
            head, _, tail = made.partition(_SLOT_IN_JSON)
            self._templates[index] = template = (head, tail)
        return template[0] + msgspec.json.encode(text)[1:-1] + template[1]

    def _event(
        self, index: int, sequence: OutputSequence, delta: Json, end: Json, length: int
    ) -> bytes:
        chunk: Json = {**self._chunk_head, "choices": [{"index": index, **delta, **end}]}
        if self._usage_in_chunks:
            chunk["usage"] = _counts(sequence.prompt_tokens, length)
        return encode_event(chunk)

    def _end(self, index: int, sequence: OutputSequence) -> Json:
        """Return the fields of a choice after its text."""
        return {
            "logprobs": self._new_logprobs(index, sequence),
            "finish_reason": sequence.finish_reason,
            "stop_reason": sequence.stop_reason,
        }

    def _new_logprobs(self, index: int, sequence: OutputSequence) -> Json | None:
        if self._num_logprobs is None:
            return None
        start, offset = self._reported.get(index, (0, 0))
        new = sequence.output_tokens[start:]
        self._reported[index] = start + len(new), offset + len(decode(new))
        return self._format.logprobs(new, start, self._num_logprobs, offset)

    def _usage(self, groups: list[SequenceGroup]) -> Json:
        prompt = sum(len(group.prompt) for group in groups)
        output = sum(each.output_length for group in groups for each in group.choices)
        details = None
        if self._report_cached:
            # Only the last prompt is reported, as in vLLM.
            details = {"cached_tokens": self._prefix_hits(groups[-1])}
        return {**_counts(prompt, output), "prompt_tokens_details": details}

    def _prefix_hits(self, group: SequenceGroup) -> int:
        """Return the prefill rank's hits on a decode rank, whose own include pulled tokens."""
        params = self._request.kv_transfer_params
        if params and params.do_remote_prefill and params.remote_prefill_cached_tokens is not None:
            return params.remote_prefill_cached_tokens
        return group.choices[0].cached_tokens


def _counts(prompt: int, output: int) -> Json:
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + output,
        "completion_tokens": output,
    }
