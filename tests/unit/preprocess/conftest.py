"""Model folders with small tokenizers of every family, trained on this repository's text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.unit.preprocess import cases
from tests.unit.preprocess.templates import TEMPLATES

ROOT = Path(__file__).parents[3]
# Pre-tokenizers of the families, from their tokenizer.json files.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENS = [
    *("<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|im_end|>x"),
    AddedToken("<left>", lstrip=True),
    AddedToken("<s>left", lstrip=True),  # contains a token that begins a piece
    AddedToken("<right>", rstrip=True),
    AddedToken("<word>", single_word=True),
    AddedToken("<normal>", normalized=True, special=False),
]


def _split(*patterns: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, plain])


def _byte_level(pre_tokenizer: Any, normalizer: Any = None) -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=alphabet, show_progress=False
    )


def _pieces(pre_tokenizer: Any, normalizer: Any = None) -> tuple[Tokenizer, Any]:
    """BPE in the way of sentencepiece: spaces become U+2581, rare characters become bytes."""
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces, joined = decoders.Replace("\u2581", " "), [decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([spaces, *joined, decoders.Strip(" ", 1, 0)])
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return tokenizer, trainers.BpeTrainer(
        vocab_size=1500, special_tokens=tokens, show_progress=False
    )


def _unigram() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=400, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )


def _word_piece() -> tuple[Tokenizer, Any]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(
        vocab_size=800, special_tokens=["<unk>"], show_progress=False
    )


_LEGACY = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
FAMILIES: dict[str, Callable[[], tuple[Tokenizer, Any]]] = {
    "gpt2": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "prefixed": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "llama3": lambda: _byte_level(_split(LLAMA3)),
    "qwen2": lambda: _byte_level(_split(QWEN2), normalizers.NFC()),
    "deepseek": lambda: _byte_level(
        _split(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u30ff]+", DEEPSEEK)
    ),
    "nfkc": lambda: _byte_level(pre_tokenizers.ByteLevel(), normalizers.NFKC()),
    "llama2": lambda: _pieces(None, normalizers.Sequence(_LEGACY)),
    "gemma": lambda: _pieces(
        pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Replace(" ", "\u2581")
    ),
    "metaspace": lambda: _pieces(pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "always": lambda: _pieces(pre_tokenizers.Metaspace(prepend_scheme="always", split=True)),
    "unigram": _unigram,
    "wordpiece": _word_piece,
}
FAST = ("gpt2", "llama3", "qwen2", "deepseek", "llama2", "gemma")


def _train(make: Callable[[], tuple[Tokenizer, Any]], text: list[str]) -> Tokenizer:
    tokenizer, trainer = make()
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_special_tokens(TOKENS[:-1])
    tokenizer.add_tokens(TOKENS[-1:])
    return tokenizer


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model folder of each family."""
    files = sorted((ROOT / "hpc_dynamo").rglob("*.py"))[:40]
    words = [file.read_text("utf-8") for file in files]
    words.append("中文字、日本語テスト 한국어 café naïve 🙂 12345 ½ Zürich\n" * 20)
    # Models without words would merge whole lines; short lines keep training short.
    lines = [line[:60] for text in words for line in text.splitlines(keepends=True)]
    root, found = tmp_path_factory.mktemp("models"), {}
    for name, make in FAMILIES.items():
        found[name] = model_folder(root / name, TEMPLATES["thinking"])
        _train(make, lines[: 1000 if name == "unigram" else None]).save(
            str(found[name] / "tokenizer.json")
        )
    return found


def model_folder(path: Path, template: str, **config: Any) -> Path:
    """Return a model folder without tokenizer.json."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    (path / "tokenizer_config.json").write_text(json.dumps({**cases.SPECIAL, **config}))
    (path / "chat_template.jinja").write_text(template)
    return path
