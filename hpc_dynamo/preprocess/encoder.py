"""Text to token ids, with the fastest library that is exact for the model's tokenizer.

fastokens handles BPE, byte-level or after sentencepiece (Llama, Qwen, DeepSeek, Gemma, GPT-OSS).
`tokenizers` handles the rest (Metaspace, NFKC, Unigram, WordPiece). With both, text between two
special tokens that was seen before is looked up. See benchmarks/results/libraries.md.
"""

import re
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from sys import getsizeof
from threading import Lock
from typing import Any, Protocol

import fastokens  # type: ignore[import-untyped]  # ships stubs, but no py.typed
from tokenizers import Tokenizer

# Characters of text whose words take at most 200 MB, or 20 MB for English.
RENEW_CHARS = 32 << 20

# Probe texts: all bytes that UTF-8 can contain, and texts that libraries are known to encode
# differently. fastokens raises for a byte that a vocabulary lacks.
_BYTES = "".join(map(chr, range(0x800))) + "".join(chr(0x1000 * i) for i in (*range(1, 13), 14, 15))
_PLANES = "".join(map(chr, (0x10000, 0x40000, 0x80000, 0xC0000, 0x100000)))
_WORDS = (
    "",
    " ",
    # prose: ignore (probe text)
    "The quick brown fox, isn't it?  I'LL say 'twas 12345678 \u00bd \u2167 \u0661\u0662!\n\n\n  x",
    "\t\tdef f(x):\r\n\r\n    return x   \n \n",
    "caf\u00e9 cafe\u0301 \ufb01 \u1e9e \u017f \u0130 \u00a0\u3000\u200b\u2028\u0085\x0b\x0c",
    "\u4e2d\u6587\u5b57\uff0c\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\u0e44\u0e17\u0e22 \u0915\u094d\u0937\u093f \u2581\u2581a",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea==>{'a': [1, 2]}...",
)


class Encoder(Protocol):
    """Encodes text. Thread-safe; releases the GIL while it works."""

    name: str
    inline_chars: int  # length of a new text that takes about half a millisecond

    def encode(self, text: str, *, special: bool) -> bytes:
        """Return ids as uint32; `special` adds the tokens around a text (BOS, EOS).

        Raises UnicodeEncodeError for half a surrogate pair.
        """

    def limit_memory(self) -> bool:
        """Bound the memory for words; return True if it did anything. Takes up to a second."""


def choose_encoder(exact: Tokenizer, serialized: str, *, cache_bytes: int) -> tuple[Encoder, str]:
    """Return the fastest encoder that gives the ids of `exact`, and why it is not fastokens.

    `serialized` is `exact` as tokenizer.json; `cache_bytes` limits the cached texts.
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
        text.encode()  # raises UnicodeEncodeError with the position
        raise
    return array("I", batch[0].ids).tobytes()


class FastokensEncoder:
    """fastokens. `_fallback` encodes texts with a byte that the vocabulary lacks.

    fastokens 0.3.5 caches every word without a bound, about 60 bytes each. It is therefore replaced
    after `renew_chars` of text that were not in the segment cache.
    """

    name = "fastokens"
    inline_chars = 64_000

    def __init__(
        self, serialized: str, exact: Tokenizer, cache_bytes: int, renew_chars: int = RENEW_CHARS
    ) -> None:
        self._serialized, self._cache_bytes = serialized, cache_bytes
        self._renew_chars, self._chars = renew_chars, 0
        self._fast = self._create()
        self._fallback: Tokenizer | None = exact
        if self._covers_all_bytes():
            self._fallback = None  # frees 30 to 150 MB

    def _create(self) -> Any:
        fast = fastokens.Tokenizer.from_json_str(self._serialized)  # releases the GIL
        fast.no_truncation()
        fast.no_padding()
        fast.enable_segment_cache(self._cache_bytes)
        return fast

    def limit_memory(self) -> bool:
        if self._chars - self._fast.segment_cache_stats()["hit_bytes"] < self._renew_chars:
            return False
        self._fast, self._chars = self._create(), 0
        return True

    def _covers_all_bytes(self) -> bool:
        try:
            self._fast.encode_batch_flat([_BYTES, _PLANES])
        except ValueError:
            return False
        return True

    def encode(self, text: str, *, special: bool) -> bytes:
        """See Encoder.encode."""
        self._chars += len(text)
        try:
            ids: bytes = self._fast.encode_batch_flat([text], add_special_tokens=special)[0]
        except UnicodeEncodeError:
            raise
        except ValueError:
            if self._fallback is None:
                raise
            return _encode(self._fallback, text, special)
        return ids


class CachingEncoder:
    """`tokenizers` with an LRU cache of the text after each special token.

    A piece begins at a special token and ends before the next one. Tokenizers split there first, so
    the joined ids of the pieces are those of the whole text.
    """

    name = "tokenizers"
    inline_chars = 2_000

    def __init__(self, exact: Tokenizer, cache_bytes: int) -> None:
        self._exact, self._free_bytes, self._lock = exact, cache_bytes, Lock()
        self._cached = OrderedDict[str, bytes]()
        # A token that depends on its neighbours starts no piece, but is searched for, because it
        # may contain another token.
        tokens = [t for t in exact.get_added_tokens_decoder().values() if not t.normalized]
        longest = sorted((t.content for t in tokens), key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, longest))) if longest else None
        self._starts = {t.content for t in tokens if not (t.lstrip or t.single_word)}

    def encode(self, text: str, *, special: bool) -> bytes:
        if special:
            return _encode(self._exact, text, special)
        return b"".join(map(self._piece, self._pieces(text)))

    def limit_memory(self) -> bool:
        return False  # cache_bytes bounds the cache

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
            if (ids := self._cached.get(text)) is not None:
                self._cached.move_to_end(text)
                return ids
        ids = _encode(self._exact, text, special=False)
        with self._lock:
            self._keep(text, ids)
        return ids

    def _keep(self, text: str, ids: bytes) -> None:
        if self._cached.get(text) is None:
            self._cached[text] = ids
            self._free_bytes -= _size(text, ids)
        while self._free_bytes < 0:
            self._free_bytes += _size(*self._cached.popitem(last=False))


def _size(text: str, ids: bytes) -> int:
    return getsizeof(text) + getsizeof(ids) + 200  # 200: entry of an OrderedDict
