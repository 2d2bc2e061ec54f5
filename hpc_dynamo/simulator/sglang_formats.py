"""SGLang's responses to completions and chats. `sglang_typed_formats` has the other paths.

The forms are those of a recorded conversation with SGLang 0.5.23
(tests/integration/simulator/test_sglang_conversation.py).
"""

from typing import Any, ClassVar

from hpc_dynamo.http.sse import DONE_EVENT, encode_event
from hpc_dynamo.simulator.response_formats import ResponseBuilder, counts
from hpc_dynamo.simulator.sequence import OutputSequence, SequenceGroup

Json = dict[str, Any]

END_OF_SEQUENCE = 2  # `matched_stop` of an output that ended by itself: a token id
NO_REASONING: Json = {"reasoning_content": None}
WEIGHTS = "default"  # version of the weights


class SglangBuilder(ResponseBuilder):
    """Builds the response to a completion or a chat."""

    unfinished: ClassVar[Json] = {"logprobs": None, "finish_reason": None, "matched_stop": None}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not self._chat:
            self._chunk_end = {"usage": None}

    def complete(self, groups: list[SequenceGroup]) -> Json:
        response = super().complete(groups)
        del response["kv_transfer_params"]
        end = groups[0].choices[0].output_length
        versions = [{"version": WEIGHTS, "start": 0, "end": end}]
        return response | {"metadata": {"weight_version": WEIGHTS, "weight_versions": versions}}

    def opening(self, sequences: list[OutputSequence]) -> bytes:
        """Return the events with the role of each message of a chat, which have no usage."""
        delta = {"delta": self._chat_message(""), **self.unfinished}
        count = len(sequences) if self._chat else 0
        return b"".join(self._choice_event({"index": i, **delta}) for i in range(count))

    def chunk(self, index: int, sequence: OutputSequence) -> bytes:
        """Return the event with new text. The end of a chat's choice is an event of its own."""
        text = sequence.new_text()
        if sequence.finish_reason is None and self._plain:
            return self._fill_template(index, text) if text else b""
        if self._chat and not text and self._request.num_logprobs is None:
            return b""
        choice = self._delta(text) | self._end(index, sequence)
        if self._chat:
            choice |= {"finish_reason": None, "matched_stop": None}
        return self._event(index, sequence, choice, sequence.output_length)

    def closing(self, groups: list[SequenceGroup]) -> bytes:
        """Return the events after the last token."""
        events = self._ends_of_choices(groups) if self._chat else b""
        if self._usage_at_end:
            usage = self._usage(groups)
            if not self._chat:
                del usage["completion_tokens_details"]
            events += encode_event({**self._chunk_head, "choices": [], "usage": usage})
        return events + DONE_EVENT

    def _ends_of_choices(self, groups: list[SequenceGroup]) -> bytes:
        sequences = [sequence for group in groups for sequence in group.choices]
        end: Json = {"delta": NO_REASONING, "logprobs": None}
        choices = ({"index": i, **end, **finish(each)} for i, each in enumerate(sequences))
        return b"".join(map(self._choice_event, choices))

    def _choice_event(self, choice: Json) -> bytes:
        return encode_event({**self._chunk_head, "choices": [choice]})

    def _chat_message(self, text: str) -> Json:
        return NO_REASONING | super()._chat_message(text)

    def _delta(self, text: str) -> Json:
        return {"delta": NO_REASONING | {"content": text}} if self._chat else {"text": text}

    def _end(self, index: int, sequence: OutputSequence) -> Json:
        return {"logprobs": self._new_logprobs(index, sequence), **finish(sequence)}

    def _new_logprobs(self, index: int, sequence: OutputSequence) -> Json | None:
        logprobs = super()._new_logprobs(index, sequence)
        if logprobs and not self._chat:
            logprobs["text_offset"] = [-1] * len(logprobs["tokens"])
            if not self._request.num_logprobs:
                logprobs["top_logprobs"] = []
        return logprobs

    def _chunk_usage(self, sequence: OutputSequence, length: int) -> Json:
        groups = [sequence.group] if self._chat else []
        return self._counts(sequence.prompt_tokens, length, groups)

    def _usage(self, groups: list[SequenceGroup]) -> Json:
        prompt = sum(len(group.prompt) for group in groups)
        output = sum(each.output_length for group in groups for each in group.choices)
        return self._counts(prompt, output, groups)

    def _counts(self, prompt: int, output: int, groups: list[SequenceGroup]) -> Json:
        reported = groups and self._report_cached
        details = {"cached_tokens": sum(map(cached_tokens, groups))} if reported else None
        more = {"reasoning_tokens": 0, "completion_tokens_details": None}
        return {**counts(prompt, output), "prompt_tokens_details": details, **more}


def finish(sequence: OutputSequence) -> Json:
    """Return why a choice ended, with the stop string or the token that ended it."""
    ended = sequence.finish_reason == "stop" and sequence.stop_reason is None
    matched = END_OF_SEQUENCE if ended else sequence.stop_reason
    return {"finish_reason": sequence.finish_reason, "matched_stop": matched}


def cached_tokens(group: SequenceGroup) -> int:
    """Return the prompt's tokens in the prefix cache; 0 if another rank computed the prompt."""
    return 0 if group.remote_blocks else group.choices[0].cached_tokens
