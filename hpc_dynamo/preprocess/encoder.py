"""Text to token ids: the fastest engine that is exact for the model's tokenizer.

Microseconds of CPU for prompts of about 1,130 tokens (4,400 characters of English, Qwen2's
vocabulary), one core, new text first, then the same again:

    fastokens 0.3.5        29      10    chosen: exact in 700,000 random texts of six families
    gigatoken 0.10.0       48      10    exact too, but brings awkward, numpy and typer
    tokie 0.1.4           146     111    differs in 1 random text of 35 (numerals, form feeds)
    kitoken 0.11.1        388     333
    tokenizers 0.23.3    1582    1493    `encode_batch_fast`; `encode` takes 1,800, holds the GIL

fastokens does BPE, byte-level or after sentencepiece (Llama, Qwen, DeepSeek, Gemma, GPT-OSS).
What it cannot do (Metaspace, NFKC, Unigram, WordPiece) goes to `tokenizers`. In both, text between
two special tokens that was seen before is looked up, not tokenised again.
"""

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from sys import getsizeof
from threading import Lock
from typing import Any, Protocol

import fastokens  # type: ignore[import-untyped]  # ships stubs, but no py.typed
from tokenizers import Tokenizer

RENEW_CHARS = 32 << 20  # at the most 200 MB of words, of English a tenth

# Each character of the Basic Latin block, each byte that UTF-8 can have, and what tokenizers
# are known to differ in. A vocabulary that lacks one of these bytes makes fastokens raise.
_BYTES = "".join(map(chr, range(0x800))) + "".join(chr(0x1000 * i) for i in (*range(1, 13), 14, 15))
_PLANES = "".join(map(chr, (0x10000, 0x40000, 0x80000, 0xC0000, 0x100000)))
_WORDS = (
    "",
    " ",
    "The quick brown fox, isn't it?  I'LL say 'twas 12345678 \u00bd \u2167 \u0661\u0662!\n\n\n  x",
    "\t\tdef f(x):\r\n\r\n    return x   \n \n",
    "caf\u00e9 cafe\u0301 \ufb01 \u1e9e \u017f \u0130 \u00a0\u3000\u200b\u2028\u0085\x0b\x0c",
    "\u4e2d\u6587\u5b57\uff0c\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\u0e44\u0e17\u0e22 \u0915\u094d\u0937\u093f \u2581\u2581a",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea==>{'a': [1, 2]}...",
)


class Encoder(Protocol):
    """Encodes text; safe in threads, and releases the GIL while it works."""

    name: str
    inline_chars: int  # a text of this length takes about half a millisecond, unseen

    def encode(self, text: str, *, special: bool) -> bytes:
        """Ids as uint32; `special` adds what the tokenizer puts around a text (BOS, EOS).

        Raises UnicodeEncodeError for half a surrogate pair.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""

    def limit_memory(self) -> bool:
        """To be called now and then, in a thread, since it may take a second: keeps memory
        bounded. Whether it had to do anything."""


def choose_encoder(exact: Tokenizer, serialized: str, *, cache_bytes: int) -> tuple[Encoder, str]:
    """The fast encoder where it gives the ids of `exact`, and why not otherwise.

    `serialized` is `exact` as tokenizer.json; `cache_bytes` bounds the texts that are kept.
    """
    try:
        fast = FastokensEncoder(serialized, exact, cache_bytes)
    except ValueError as error:  # a part of tokenizer.json that fastokens does not know
        return CachingEncoder(exact, cache_bytes), str(error)
    different = next((text for text in _probes(exact) if not _agree(fast, exact, text)), None)
    if different is None:
        return fast, ""
    return CachingEncoder(
        exact, cache_bytes
    ), f"fastokens differs from tokenizers for {different!r}"


def _probes(exact: Tokenizer) -> Iterator[str]:
    added = [token.content for token in exact.get_added_tokens_decoder().values()][:256]
    yield from (*_WORDS, _BYTES, _PLANES)
    yield from (f"a {token} b{token}{token}\n{token.upper()}" for token in added)


def _agree(fast: Encoder, exact: Tokenizer, text: str) -> bool:
    return all(
        fast.encode(text, special=special) == _encode(exact, text, special)
        for special in (False, True)
    )


def _encode(tokenizer: Tokenizer, text: str, special: bool) -> bytes:
    try:
        batch = tokenizer.encode_batch_fast([text], add_special_tokens=special)
    except TypeError:
        text.encode()  # says what is wrong with it
        raise
    return array("I", batch[0].ids).tobytes()


class FastokensEncoder:
    """fastokens. `rescue` takes the texts with a byte that the vocabulary lacks.

    It remembers every word that it ever met (0.3.5: some 60 bytes each, without a bound), so
    after `renew_chars` of text that the segment cache did not have a new one takes its place.
    """

    name = "fastokens"
    inline_chars = 64_000

    def __init__(
        self, serialized: str, exact: Tokenizer, cache_bytes: int, renew_chars: int = RENEW_CHARS
    ) -> None:
        self._serialized, self._cache_bytes = serialized, cache_bytes
        self._renew_chars, self._chars = renew_chars, 0
        self._fast = self._new()
        self._rescue: Tokenizer | None = exact
        if self._complete():
            self._rescue = None  # 30 to 150 MB

    def _new(self) -> Any:
        fast = fastokens.Tokenizer.from_json_str(self._serialized)  # releases the GIL
        fast.no_truncation()
        fast.no_padding()
        fast.enable_segment_cache(self._cache_bytes)
        return fast

    def limit_memory(self) -> bool:
        if self._chars - self._fast.segment_cache_stats()["hit_bytes"] < self._renew_chars:
            return False
        self._fast, self._chars = self._new(), 0
        return True

    def _complete(self) -> bool:
        try:
            self._fast.encode_batch_flat([_BYTES, _PLANES])
        except ValueError:
            return False
        return True

    def encode(self, text: str, *, special: bool) -> bytes:
        self._chars += len(text)
        try:
            ids: bytes = self._fast.encode_batch_flat([text], add_special_tokens=special)[0]
        except UnicodeEncodeError:
            raise
        except ValueError:
            if self._rescue is None:
                raise
            return _encode(self._rescue, text, special)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._fast.decode(list(ids), skip_special_tokens=False)
        return text


class CachingEncoder:
    """`tokenizers`, with what follows each special token kept as long as there is room.

    A piece begins at a special token and ends before the next one. Tokenizers cut there before
    they do anything else, so the ids of the pieces, joined, are those of the whole text.
    """

    name = "tokenizers"
    inline_chars = 2_000

    def __init__(self, exact: Tokenizer, cache_bytes: int) -> None:
        self._exact, self._room, self._lock = exact, cache_bytes, Lock()
        self._known = OrderedDict[str, bytes]()
        # A token that looks at its neighbours or at normalised text begins no piece of its own,
        # but it is searched for: it may hide another one.
        tokens = [t for t in exact.get_added_tokens_decoder().values() if not t.normalized]
        longest = sorted((t.content for t in tokens), key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, longest))) if longest else None
        self._starts = {t.content for t in tokens if not (t.lstrip or t.single_word)}

    def encode(self, text: str, *, special: bool) -> bytes:
        if special:
            return _encode(self._exact, text, special)
        return b"".join(map(self._piece, self._pieces(text)))

    def decode(self, ids: Sequence[int]) -> str:
        return self._exact.decode(list(ids), skip_special_tokens=False)

    def limit_memory(self) -> bool:
        return False  # what is kept is bounded as it is

    def _pieces(self, text: str) -> Iterator[str]:
        begin = 0
        for found in self._token.finditer(text) if self._token else ():
            if found.start() > begin and found.group() in self._starts:
                yield text[begin : found.start()]
                begin = found.start()
        if begin < len(text):
            yield text[begin:]

    def _piece(self, text: str) -> bytes:
        with self._lock:
            if (known := self._known.get(text)) is not None:
                self._known.move_to_end(text)
                return known
        ids = _encode(self._exact, text, special=False)
        with self._lock:
            self._keep(text, ids)
        return ids

    def _keep(self, text: str, ids: bytes) -> None:
        if self._known.get(text) is None:
            self._known[text] = ids
            self._room -= _size(text, ids)
        while self._room < 0:
            self._room += _size(*self._known.popitem(last=False))


def _size(text: str, ids: bytes) -> int:
    return getsizeof(text) + getsizeof(ids) + 200  # an entry of an ordered dict
