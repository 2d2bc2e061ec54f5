"""Unusual but legal request bodies, each with the same answer from one worker and from two.

Every body is greedy or seeded, so that its answer is deterministic. Prompts stay below one KV
block unless a body needs a long one, and answers are a few tokens, to keep the table cheap.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

MODEL = "smol"
CONTEXT = 1024  # tokens: engine.args.max-model-len of the engines that get these bodies
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

Fields = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """One request. With `status_only` the bodies of the errors may differ."""

    name: str
    path: str
    body: Fields
    status_only: bool = False

    @property
    def content(self) -> bytes:
        return json.dumps(self.body).encode()

    @property
    def batch_line(self) -> Fields:
        return {"custom_id": self.name, "method": "POST", "url": self.path, "body": self.body}

    @property
    def direct(self) -> "Case":
        """Return the request without `kv_transfer_params`, which an engine would obey."""
        body = {name: value for name, value in self.body.items() if name != "kv_transfer_params"}
        return replace(self, body=body)

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))


PARIS, LONDON, SHIPS = "The capital of France is", "The capital of England is", "A story of ships:"
ANNA, SNIPPET = "My name is Anna and I live in " * 6, "def add(a, b): return a + b; " * 8
# Two KV blocks of 128 tokens: more than another prompt of the same list has.
COUNT = "1, 2, 3, 4, 5, 6, 7, 8, " * 8
IDS, OTHER_IDS = [504, 3575, 282, 4649, 314], [504, 3575, 282, 3996, 314, 260]
HI = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}},
    },
}
FLAT_WEATHER = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
NAMED = {"type": "function", "function": {"name": "weather"}}
SHAPE = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
CALL = {
    "id": "c",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
}
FOREIGN = {
    "do_remote_decode": False, "do_remote_prefill": True, "remote_engine_id": "e",
    "remote_block_ids": [[1]], "remote_host": "127.0.0.1", "remote_port": 1,
}  # fmt: skip
SAMPLED = {"temperature": 1.0, "top_k": 20, "seed": 7}
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CONTINUOUS = {
    "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}  # fmt: skip


def completion(name: str, prompt: Any = PARIS, **fields: Any) -> Case:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 5}
    return Case(f"completion {name}", COMPLETIONS, body | fields)


def chat(name: str, messages: Any = HI, **fields: Any) -> Case:
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 5}
    return Case(f"chat {name}", CHAT, body | fields)


def responses(name: str, asked: Any, **fields: Any) -> Case:
    body = {"model": MODEL, "input": asked, "temperature": 0, "max_output_tokens": 5}
    return Case(f"responses {name}", RESPONSES, body | fields)


def messages(name: str, *, status_only: bool = False, **fields: Any) -> Case:
    body = {"model": MODEL, "messages": HI, "temperature": 0, "max_tokens": 5}
    return Case(f"messages {name}", MESSAGES, body | fields, status_only)


def said(*contents: str) -> list[Fields]:
    """Return a conversation with alternating roles, the user first."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


LISTS = (
    completion("two texts", [PARIS, SHIPS]),
    completion("two texts, the second longer", [PARIS, COUNT]),
    completion("three texts, the second longest", [ANNA, COUNT, SNIPPET]),
    completion("two lists of ids", [IDS, OTHER_IDS]),
    completion("one text in a list", [PARIS]),
    completion("one list of ids in a list", [IDS]),
    completion("the same text twice", [PARIS, PARIS]),
    completion("two texts, n=2", [PARIS, LONDON], n=2, **SAMPLED),
    completion("two texts, streamed", [PARIS, SHIPS], **USAGE),
    completion("two texts, log-probabilities", [PARIS, SHIPS], logprobs=2),
    completion("two texts, echo", [PARIS, LONDON], echo=True),
    completion("texts in an empty list", []),
    completion("a text and an empty text", [PARIS, ""]),
    completion("texts and ids mixed", [PARIS, IDS]),
)
ANSWERS = (
    completion("n=3 with a seed", n=3, **SAMPLED),
    completion("n=2, streamed", n=2, **SAMPLED, **USAGE),
    completion("n=1 as it is", n=1),
    completion("n=null", n=None),
    completion("n=2, greedy", n=2),
    completion("n=0", n=0),
    completion("best_of=2", best_of=2, **SAMPLED),
    completion("beam search", use_beam_search=True, n=2, max_tokens=3),
    completion("beam search switched off", use_beam_search=False),
    chat("n=3 with a seed", n=3, **SAMPLED),
    chat("n=2, streamed", n=2, **SAMPLED, **USAGE),
    chat("beam search", use_beam_search=True, n=2, max_tokens=3),
)
PROMPTS = (
    completion("echo", echo=True),
    completion("echo without an answer", echo=True, max_tokens=0, logprobs=1),
    completion("echo=false", echo=False),
    completion("prompt_logprobs=1", prompt_logprobs=1),
    completion("prompt_logprobs=0", prompt_logprobs=0),
    completion("prompt_logprobs=null", prompt_logprobs=None),
    completion("ids", IDS),
    completion("return_token_ids", return_token_ids=True),
    completion("add_special_tokens=false", add_special_tokens=False),
    completion("truncate_prompt_tokens", ANNA, truncate_prompt_tokens=8),
    completion("cache_salt", cache_salt="tenant"),
    completion("of the longest length", [504] * (CONTEXT - 1), max_tokens=1),
    completion("of the whole context", [504] * CONTEXT, max_tokens=1),
    completion("longer than the context", [504] * (CONTEXT + 8), max_tokens=1),
    completion("with NUL and emoji", "a\x00b 🦊 ü —"),
    completion("that is empty", ""),
    completion("suffix", suffix=" end"),
    completion("ids out of the vocabulary", [10**6, 1]),
)
LENGTHS = (
    completion("max_tokens=0", max_tokens=0),
    completion("max_tokens=1", max_tokens=1),
    completion("max_tokens=null", stop=["."], max_tokens=None),
    completion("max_tokens as text", max_tokens="5"),
    completion("stop text", stop=" Paris"),
    completion("stop list, kept", stop=[" Paris", "\n"], include_stop_str_in_output=True),
    completion("stop_token_ids", stop_token_ids=[7042]),
    completion("min_tokens", min_tokens=5, stop=["."]),
    completion("ignore_eos", ignore_eos=True),
    chat("max_completion_tokens", max_tokens=None, max_completion_tokens=4),
    chat("max_tokens=1", max_tokens=1),
)
SAMPLING = (
    completion("logprobs=0", logprobs=0),
    completion("logprobs=3, streamed", logprobs=3, **CONTINUOUS),
    completion("logit_bias", logit_bias={"7042": -100}),
    completion("penalties", presence_penalty=1.5, frequency_penalty=0.5, repetition_penalty=1.2),
    completion("seed", **SAMPLED),
    completion("priority", priority=0),
    completion("bad_words", bad_words=["Paris"]),
    completion("allowed_token_ids", allowed_token_ids=[7042, 30]),
    completion("temperature=-1", temperature=-1),
    completion("foreign kv_transfer_params", kv_transfer_params=FOREIGN),
    completion("kv_transfer_params=null", kv_transfer_params=None),
    chat("logprobs without tops", logprobs=True),
    chat("top_logprobs", logprobs=True, top_logprobs=2),
    chat("top_logprobs, streamed", logprobs=True, top_logprobs=2, **CONTINUOUS),
)
SHAPES = (
    chat("JSON schema", max_tokens=24, response_format={
        "type": "json_schema", "json_schema": {"name": "x", "schema": SHAPE}}),
    chat("JSON object", max_tokens=8, response_format={"type": "json_object"}),
    completion("structured choice", structured_outputs={"choice": ["Rome", "Paris"]}),
    completion("structured regex", structured_outputs={"regex": "[a-c]{3}"}),
    completion("structured grammar", structured_outputs={"grammar": 'root ::= "yes" | "no"'}),
    completion("structured JSON", max_tokens=24, structured_outputs={"json": SHAPE}),
    chat("tools named", tools=[WEATHER], tool_choice=NAMED, max_tokens=16),
    chat("tools required", tools=[WEATHER], tool_choice="required", max_tokens=24),
    chat("tools required, streamed", tools=[WEATHER], tool_choice="required", max_tokens=24,
         **USAGE),
    chat("tools auto", tools=[WEATHER], tool_choice="auto"),
    chat("tools none", tools=[WEATHER], tool_choice="none"),
)  # fmt: skip
TURNS = (
    chat("developer role", [{"role": "developer", "content": "Be brief."}, *HI]),
    chat("content in parts", [{"role": "user", "content": [
        {"type": "text", "text": "What is"}, {"type": "text", "text": "the sea?"}]}]),
    chat("empty answer with tool calls", [
        *HI, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"}]),
    chat("continue_final_message", said("Capital?", "The capital is"),
         continue_final_message=True, add_generation_prompt=False),
    chat("echo", said("Capital?", "The capital is"), echo=True,
         continue_final_message=True, add_generation_prompt=False),
    chat("emoji and NUL, streamed", said("Repeat: 🦊 \x00 ü"), **USAGE),
    chat("stream without usage", stream=True),
    chat("empty messages", []),
    chat("message without content", [{"role": "user"}]),
)  # fmt: skip
OTHERS = (
    responses("text", "Say hello."),
    responses("list, streamed", HI, stream=True),
    responses(
        "tools required",
        "Weather?",
        max_output_tokens=24,
        tools=[FLAT_WEATHER],
        tool_choice="required",
    ),
    messages("plain"),
    messages("system text, streamed", system="Be brief.", stream=True),
    # The endpoint gives the error Anthropic's form, which vLLM does not.
    messages("max_tokens as text", max_tokens="x", status_only=True),
    Case("tokenize", "/tokenize", {"model": MODEL, "prompt": PARIS}),
    Case("embeddings", "/v1/embeddings", {"model": MODEL, "input": ["a"]}, status_only=True),
)
CASES = LISTS + ANSWERS + PROMPTS + LENGTHS + SAMPLING + SHAPES + TURNS + OTHERS

# Usual requests with longer answers.
QUESTIONS = tuple(
    chat(question, [{"role": "user", "content": question}], max_tokens=24)
    for question in (
        "What is the capital of France?",
        "Name three colours of the rainbow.",
        "Write one sentence about the sea.",
        "How many legs does a spider have?",
        "What do bees make?",
        "Translate 'good morning' into Spanish.",
    )
)
