"""OpenAI's completions and chat, answers out: whole, or as the events of a stream.

Shapes as in vLLM 0.32 (`entrypoints/openai/*/serving.py`).
"""

import time

import msgspec

from hpc_dynamo.http.sse import DONE_EVENT, encode_event
from hpc_dynamo.simulator import trtllm_protocol as trtllm
from hpc_dynamo.simulator.chat import ChatRequest
from hpc_dynamo.simulator.openai import CompletionRequest
from hpc_dynamo.simulator.response_formats import Chat, Form, Record, Text, ToolCall
from hpc_dynamo.simulator.sequence import Answer, Job
from hpc_dynamo.simulator.tokenizer import decode

Request = CompletionRequest | ChatRequest

_SLOT, _SLOT_IN_JSON = "\0", rb"\u0000"  # no header line and no argument can hold it
_OPEN: Record = {"logprobs": None, "finish_reason": None, "stop_reason": None}


def form_of(request: Request, request_id: str) -> Form:
    """How the answer is to look. Raises Refused for tools that cannot be called."""
    if isinstance(request, CompletionRequest):
        return Text()
    tool = request.tool()
    if tool is None:
        return Chat()
    return ToolCall(tool.function.name, request_id, named=isinstance(request.tool_choice, dict))


class Records:
    """Makes the records of one request's answers.

    `cached` says whether to tell of prefix hits, `trtllm` whether a hand-over is told in its
    words. Raises Refused for options that do not fit.
    """

    def __init__(
        self, request: Request, request_id: str, model: str, *, cached: bool, trtllm: bool = False
    ) -> None:
        self._form = form_of(request, request_id)
        self._alternatives = request.alternatives()
        self._usage_at_end, self._usage_always = request.usage_in_stream
        self._request, self._cached, self._trtllm = request, cached, trtllm
        name, created = f"{self._form.prefix}-{request_id}", int(time.time())
        self._head = {"id": name, "object": self._form.kind, "created": created, "model": model}
        self._chunk_head = {**self._head, "object": self._form.chunk_kind}
        self._plain = self._alternatives is None and not self._usage_always
        self._templates = dict[int, tuple[bytes, bytes]]()
        self._listed = dict[int, int]()  # tokens of a choice whose log-probabilities are out
        self._offsets = dict[int, int]()  # and their characters

    def whole(self, jobs: list[Job]) -> Record:
        """The answer to a request without a stream."""
        choices = list[Record]()
        for answer in (answer for job in jobs for answer in job.choices):
            index = len(choices)
            content = self._form.whole(index, self._echo(answer) + self._news(answer))
            choices.append({"index": index, **content, **self._end(index, answer)})
        record = {**self._head, "choices": choices, "usage": self._usage(jobs)}
        record["kv_transfer_params"] = jobs[0].handover
        if self._trtllm:
            return trtllm.told(record, jobs[0], self._request.disaggregated_params)
        return record

    def opening(self, answers: list[Answer]) -> bytes:
        """The events before any token."""
        events = list[bytes]()
        for index, answer in enumerate(answers):
            deltas, echo = self._form.opening(index), self._echo(answer)
            deltas += [self._form.delta(echo)] if echo else []
            events += [self._event(index, answer, delta, _OPEN, 0) for delta in deltas]
        return b"".join(events)

    def chunk(self, index: int, answer: Answer) -> bytes:
        """The event with what is new of an answer; empty where nothing is."""
        text = self._news(answer)
        if answer.finish is None and self._plain:
            return self._filled(index, text) if text else b""
        if not (text or answer.finish or self._alternatives is not None):
            return b""
        delta, end = self._form.delta(text), self._end(index, answer)
        return self._event(index, answer, delta, end, answer.said)

    def closing(self, jobs: list[Job]) -> bytes:
        """The events after the last token."""
        if not self._usage_at_end:
            return DONE_EVENT
        return (
            encode_event({**self._chunk_head, "choices": [], "usage": self._usage(jobs)})
            + DONE_EVENT
        )

    def _filled(self, index: int, text: str) -> bytes:
        """The usual event, of which all but the text is always the same."""
        template = self._templates.get(index)
        if template is None:
            choice = {"index": index, **self._form.delta(_SLOT), **_OPEN}
            made = encode_event({**self._chunk_head, "choices": [choice]})
            head, _, tail = made.partition(_SLOT_IN_JSON)
            self._templates[index] = template = (head, tail)
        return template[0] + msgspec.json.encode(text)[1:-1] + template[1]

    def _event(self, index: int, answer: Answer, delta: Record, end: Record, said: int) -> bytes:
        record: Record = {**self._chunk_head, "choices": [{"index": index, **delta, **end}]}
        if self._usage_always:
            record["usage"] = _counts(answer.prompt_tokens, said)
        return encode_event(record)

    def _end(self, index: int, answer: Answer) -> Record:
        """What follows the text of a choice."""
        return {
            "logprobs": self._logprobs(index, answer),
            "finish_reason": self._form.finish(answer.finish),
            "stop_reason": answer.stop_reason,
        }

    def _logprobs(self, index: int, answer: Answer) -> Record | None:
        """Of the tokens that are new; with echo the prompt's come first."""
        if self._alternatives is None:
            return None
        echoed = self._request.echo and isinstance(self._request, CompletionRequest)
        tokens = answer.tokens if echoed else answer.output
        if self._silent:
            tokens = answer.job.prompt
        start, offset = self._listed.get(index, 0), self._offsets.get(index, 0)
        new = tokens[start:]
        self._listed[index] = len(tokens)
        self._offsets[index] = offset + len(decode(new))
        made = self._form.logprobs(new, start, self._alternatives, offset)
        if echoed and not start:
            made["token_logprobs"][0] = made["top_logprobs"][0] = None  # nothing comes before
        return made

    @property
    def _silent(self) -> bool:
        """Whether the prompt alone is wanted back."""
        return bool(self._request.echo) and self._request.limit[1] == 0

    def _news(self, answer: Answer) -> str:
        return "" if self._silent else answer.news()

    def _echo(self, answer: Answer) -> str:
        """The text that the request wants before the answer's own."""
        if not self._request.echo:
            return ""
        if isinstance(self._request, CompletionRequest):
            return decode(answer.job.prompt)
        last = self._request.messages[-1]
        return last.text() if last.role == "assistant" else ""

    def _usage(self, jobs: list[Job]) -> Record:
        answers = [answer for job in jobs for answer in job.choices]
        prompt, said = sum(len(job.prompt) for job in jobs), sum(a.said for a in answers)
        details = None
        if self._cached:
            details = {"cached_tokens": self._hits(jobs[-1])}  # of the last prompt, as in vLLM
        return {**_counts(prompt, said), "prompt_tokens_details": details}

    def _hits(self, job: Job) -> int:
        """A decode rank tells of the prefill rank's; its own would be all that was pulled."""
        params = self._request.kv_transfer_params
        if params and params.do_remote_prefill and params.remote_prefill_cached_tokens is not None:
            return params.remote_prefill_cached_tokens
        return job.choices[0].cached


def _counts(prompt: int, said: int) -> Record:
    return {"prompt_tokens": prompt, "total_tokens": prompt + said, "completion_tokens": said}
