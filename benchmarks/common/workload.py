"""English chat prompts of a given length, generated fast enough for load generators.

A prompt is a sequence of parts: one of a few texts, or random sentences after a unique number.
`wrk.lua` and `Workload.body` fill in the same parts, so that both generators send the same kind of
request. The sentences are from Python's language reference (pydoc_data.topics).

    same    all requests are equal
    shared  one of 16 conversations whose first turn was sent before (3/4 of the tokens), then a
            new answer and a new question, as from chats and agents
    unique  prompts differ from the first word, so that no prefix cache can help
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import Tokenizer

from hpc_dynamo.errors import unknown_name

KINDS = ("same", "shared", "unique")
CONVERSATIONS = 16
MODEL = "m"  # served name in every target
# Share of the prompt tokens per message; the first half belongs to the conversation.
LONG = (("system", 0.40), ("user", 0.35), ("assistant", 0.10), ("user", 0.15))
SHORT = (("system", 0.75), ("user", 0.25))  # four messages would be mostly template
TEMPLATE_TOKENS = 5  # tokens that ChatML adds per message
NUMBER_TOKENS = 9  # tokens of `Case 12345678.`
SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'()_.-]*[.?!]")  # needs no escaping in JSON or Lua
_numbers = count(random.SystemRandom().randrange(10**8))


@dataclass(frozen=True)
class RandomSentences:
    """Part that differs in every request: a number and random sentences."""

    sentences: int


@dataclass(frozen=True)
class Workload:
    """Kind of request. `parts` are joined to a JSON body; a tuple is a choice of texts."""

    kind: str
    tokens: int
    parts: tuple[tuple[str, ...] | RandomSentences, ...]

    def body(self, draw: random.Random) -> bytes:
        """Return a request body, generated as in wrk.lua."""
        return "".join(_filled(part, draw) for part in self.parts).encode()

    def openings(self) -> list[bytes]:
        """Return the first turns of the conversations, to send before the load."""
        talks = self.parts[1] if self.kind == "shared" else ()
        assert isinstance(talks, tuple)
        return [json.dumps(_opening(json.loads(f"[{talk}]"))).encode() for talk in talks]

    def to_lua(self) -> str:
        """Return the parts and the sentences as a Lua table for wrk.lua."""
        parts = ",\n".join(map(_lua, self.parts))
        sentences = ",\n".join(map(_quoted, corpus()))
        return f"return {{parts={{{parts}}},\nsentences={{{sentences}}}}}\n"

    def __str__(self) -> str:
        return f"{self.kind}, {self.tokens:,} tokens"


def workload(kind: str, tokens: int, tokenizer: Path, *, answer: int, stream: bool) -> Workload:
    """Return requests with about `tokens` prompt tokens and exactly `answer` generated tokens.

    `tokenizer` is the model's tokenizer.json. Raises ConfigError for an unknown kind.
    """
    if kind not in KINDS:
        raise unknown_name("workload", kind, KINDS)
    per_sentence = sentence_tokens(tokenizer)
    shares = LONG if tokens > 400 else SHORT
    left = tokens - len(shares) * TEMPLATE_TOKENS - 2 * NUMBER_TOKENS
    sizes = [(role, max(1, round(left * share / per_sentence))) for role, share in shares]
    options = {"max_tokens": answer, "ignore_eos": True, "stream": stream}
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    head = json.dumps({"model": MODEL, **options, **usage})[:-1] + ', "messages": ['
    return Workload(kind, tokens, (((head),), *_messages(kind, sizes), ("]}",)))


def _opening(messages: list[dict[str, str]]) -> dict[str, object]:
    asks = messages[-1]["role"] == "user"
    question = [] if asks else [{"role": "user", "content": "Hello!"}]
    return {"model": MODEL, "max_tokens": 1, "messages": messages + question}


def _messages(kind: str, sizes: list[tuple[str, int]]) -> list[tuple[str, ...] | RandomSentences]:
    draw = random.Random(1)  # the conversations are equal in every run
    if kind == "same":
        return [(_talk(sizes, draw),)]
    if kind == "shared":
        half = len(sizes) // 2
        talks = tuple(_talk(sizes[:half], draw) for _ in range(CONVERSATIONS))
        return [talks, (", ",), *_fresh(sizes[half:])]
    return _fresh(sizes)


def _talk(sizes: Sequence[tuple[str, int]], draw: random.Random) -> str:
    texts = ((role, _sentences(sentences, draw)) for role, sentences in sizes)
    return ", ".join(json.dumps({"role": role, "content": text}) for role, text in texts)


def _fresh(sizes: Sequence[tuple[str, int]]) -> list[tuple[str, ...] | RandomSentences]:
    parts: list[tuple[str, ...] | RandomSentences] = []
    for role, sentences in sizes:
        before = ", " if parts else ""
        parts += [
            (f'{before}{{"role": "{role}", "content": "',),
            RandomSentences(sentences),
            ('"}',),
        ]
    return parts


def _filled(part: tuple[str, ...] | RandomSentences, draw: random.Random) -> str:
    if isinstance(part, RandomSentences):
        return f"Case {next(_numbers)}. {_sentences(part.sentences, draw)}"
    return part[0] if len(part) == 1 else draw.choice(part)


def _sentences(count: int, draw: random.Random) -> str:
    return " ".join(draw.choices(corpus(), k=count))


def _lua(part: tuple[str, ...] | RandomSentences) -> str:
    if isinstance(part, RandomSentences):
        return str(part.sentences)
    return "{" + ", ".join(map(_quoted, part)) + "}"


def _quoted(text: str) -> str:
    return f"[==[{text}]==]"


@cache
def corpus() -> tuple[str, ...]:
    """Return distinct English sentences of 6 to 40 words."""
    plain = (re.sub(r"[*`\"]", "", re.sub(r"\s+", " ", text)) for text in topics.values())
    sentences = (s for text in plain for s in re.split(r"(?<=[.?!]) ", text))
    kept = (s for s in sentences if SENTENCE.fullmatch(s) and 6 <= len(s.split()) <= 40)
    return tuple(dict.fromkeys(kept))


@cache
def sentence_tokens(tokenizer: Path) -> float:
    """Return the mean number of tokens per sentence."""
    ids = Tokenizer.from_file(str(tokenizer)).encode(" ".join(corpus())).ids
    return len(ids) / len(corpus())
