"""Limits for tokenizer.json, which the author of a model writes.

Its normalizer may replace each character by many, again and again, and its post-processor may add
tokens to every text. The library aborts the process when the memory is full. Two of its models take
hours for a text if words or tokens may be long: WordPiece and Unigram.
"""

from math import prod
from typing import Any

import msgspec

from hpc_dynamo.preprocess.tokens import NoTokenizer

MAX_GROWTH = 256  # bytes that one byte of a text may become; sentencepiece needs 3
MAX_ADDED_IDS = 1000  # tokens around a text
MAX_ADDED_TOKENS = 100_000  # words with their own id; their number slows the start
# WordPiece takes time with the cube of a word's length, BERT's limit is 100.
MAX_WORD_CHARS = 200
MAX_PREFIX_CHARS = 16  # before the pieces of a word, such as `##`
MAX_UNIGRAM_CHARS = 128  # in a token; sentencepiece's limit is 16


class _Model(msgspec.Struct):
    """Fields of the model that affect the time for a text. Old files do not name its type."""

    max_input_chars_per_word: int = 0
    continuing_subword_prefix: str | None = None
    vocab: msgspec.Raw = msgspec.Raw(b"{}")  # a list if the model is Unigram


class _Parts(msgspec.Struct):
    """Parts of tokenizer.json that a limit is for."""

    added_tokens: list[msgspec.Raw] = []
    normalizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    model: _Model = msgspec.field(default_factory=_Model)


def require_bounded(serialized: str) -> None:
    """Raise NoTokenizer if a small text could fill the memory or take minutes. Raises DecodeError
    for another format, and errors of Python for unexpected types."""
    parts = msgspec.json.decode(serialized, type=_Parts)
    if len(parts.added_tokens) > MAX_ADDED_TOKENS:
        raise NoTokenizer(f"tokenizer.json adds {len(parts.added_tokens)} tokens")
    if (found := _growth(parts.normalizer or {})) > MAX_GROWTH:
        raise NoTokenizer(f"tokenizer.json makes texts up to {found:.0f} times as long")
    if (found := _added_ids(parts.post_processor or {})) > MAX_ADDED_IDS:
        raise NoTokenizer(f"tokenizer.json adds {found:.0f} tokens to each text")
    _check_model(parts.model)


def _check_model(model: _Model) -> None:
    if model.max_input_chars_per_word > MAX_WORD_CHARS:
        what = f"accepts words of {model.max_input_chars_per_word} characters"
        raise NoTokenizer(f"tokenizer.json {what}; at most {MAX_WORD_CHARS} are used here")
    if len(model.continuing_subword_prefix or "") > MAX_PREFIX_CHARS:
        what = "a prefix for pieces of a word"
        raise NoTokenizer(f"tokenizer.json has {what} of more than {MAX_PREFIX_CHARS} characters")
    vocabulary = bytes(model.vocab)
    if vocabulary.startswith(b"["):
        pieces = msgspec.json.decode(vocabulary, type=list[tuple[str, float]])
        if any(len(token) > MAX_UNIGRAM_CHARS for token, _ in pieces):
            what = f"has a token of more than {MAX_UNIGRAM_CHARS} characters"
            raise NoTokenizer(f"tokenizer.json {what}, of a Unigram model")


def _growth(normalizer: dict[str, Any]) -> float:
    """Return the bytes that a normalizer makes of one byte, at most."""
    match normalizer.get("type"):
        case "Sequence":
            return prod(map(_growth, normalizer["normalizers"]))
        case "Prepend":
            return 1.0 + len(normalizer["prepend"].encode())
        case "Replace":
            pattern, size = normalizer["pattern"], len(normalizer["content"].encode())
            # A regular expression may match an empty text between all characters.
            text = pattern.get("String")
            return max(1.0, size / len(text.encode())) if text else 1.0 + size
    return 1.0


def _added_ids(processor: dict[str, Any]) -> int:
    match processor.get("type"):
        case "Sequence":
            return sum(map(_added_ids, processor["processors"]))
        case "TemplateProcessing":
            sizes = {k: len(token["ids"]) for k, token in processor["special_tokens"].items()}
            used = [
                piece["SpecialToken"]["id"]
                for piece in processor["single"]
                if "SpecialToken" in piece
            ]
            return sum(sizes.get(name, 0) for name in used)
    return 0
