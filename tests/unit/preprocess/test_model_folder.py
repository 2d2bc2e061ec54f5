"""Configuration files of model folders, complete and incomplete."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenizers import Tokenizer, models

from hpc_dynamo.chat_templates import TemplateFailed
from hpc_dynamo.config import Config, Engine, Model
from hpc_dynamo.dispatch import RequestBuilder, RequestContext
from hpc_dynamo.engines import CHAT
from hpc_dynamo.model_files.weights import weight_defects
from hpc_dynamo.preprocess import (
    NoTokenizer,
    Preprocessor,
    PromptRejected,
    TokenIdsOnly,
    load_tokenizer,
)
from tests.unit.preprocess.conftest import model_folder


def test_tokenizer_includes_tokens_of_configuration(tmp_path: Path) -> None:
    """`add_bos_token` is ignored if there is a tokenizer.json, as in transformers 5."""
    decoder = {"5": {"content": "<tool>", "special": False, "normalized": False}}
    config: dict[str, Any] = {"add_bos_token": True, "added_tokens_decoder": decoder}
    folder = model_folder(tmp_path / "m", "", **config)
    Tokenizer(models.BPE({"<s>": 0, "a": 1}, [])).save(str(folder / "tokenizer.json"))
    preprocess = Preprocessor.load(folder)
    assert list(preprocess.encode("a<tool>a<s></s><pad>", special=True).ids) == [1, 2, 1, 0, 3, 4]


def test_folder_without_tokenizer_raises(tmp_path: Path) -> None:
    with pytest.raises(NoTokenizer, match=r"no tokenizer\.json"):
        Preprocessor.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(NoTokenizer, match=r"tokenizer\.json"):
        Preprocessor.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(NoTokenizer, match=r"config\.json is not JSON"):
        Preprocessor.load(tmp_path)


DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
PANICS = {"type": "Precompiled", "precompiled_charsmap": "////AAAA"}  # in the Rust library


def decoder(entry: str) -> str:
    return f'{{"added_tokens_decoder": {entry}}}'


@pytest.mark.parametrize(
    ("file", "text"),
    [
        *((f"{name}.json", DEEP) for name in ("config", "tokenizer_config", "special_tokens_map")),
        *(
            ("tokenizer_config.json", decoder(entry))
            for entry in ("[1]", '{"x": {"content": "a"}}', '{"1": {}}', '{"1": {"content": 5}}')
        ),
        ("tokenizer_config.json", decoder(f'{{"{"1" * 5000}": {{"content": "a"}}}}')),
        ("tokenizer_config.json", '{"bos_token": "\\ud800"}'),
        ("tokenizer.json", "\udcff"),
        ("chat_template.jinja", "\udcff"),
        ("tokenizer.json", "panics"),
    ],
)
def test_malformed_files_only_turn_off_the_tokenizer(file: str, text: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "x")
    tokenizer = json.loads(Tokenizer(models.BPE({"a": 0}, [])).to_str())
    if text == "panics":
        text = json.dumps({**tokenizer, "normalizer": PANICS})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / file).write_bytes(text.encode(errors="surrogateescape"))
    config = Config(engine=Engine(name="vllm"), model=Model(path=str(folder)))
    loaded = load_tokenizer(config, {})
    assert isinstance(loaded, TokenIdsOnly)
    assert len(loaded.reason) < 1000


@pytest.mark.parametrize(
    ("config", "tokenizer_config"),
    [
        ({"architectures": 5}, {}),
        ({"architectures": [5, None]}, {}),
        *(({}, {"chat_template": value}) for value in (5, ["x"], [{"template": "x"}], {"a": 1})),
        ({}, {"chat_template": [{"name": [], "template": 5}]}),
        ({}, {"chat_template": {"default": []}}),
        ({}, {"chat_template": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"}),
        ({}, {"chat_template": "{% if a %}" * 2000 + "{% endif %}" * 2000}),
    ],
)
async def test_malformed_templates_end_no_process(
    config: dict[str, Any], tokenizer_config: dict[str, Any], tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "m", "", **tokenizer_config)
    (folder / "chat_template.jinja").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    Tokenizer(models.BPE({"<s>": 0, "a": 1}, [])).save(str(folder / "tokenizer.json"))
    assert len(await Preprocessor.load(folder).probes()) == 2  # two texts and no chat


def test_interruption_of_loading_is_not_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    folder = model_folder(tmp_path / "m", "x")
    (folder / "tokenizer.json").touch()
    monkeypatch.setattr(Preprocessor, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(Config(engine=Engine(name="vllm"), model=Model(path=str(folder))), {})


def test_panic_while_encoding_rejects_the_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):  # the name of pyo3
        """Panic of a Rust library."""

    def panic(*_: object, **__: object) -> bytes:
        raise PanicException("index out of bounds")

    folder = model_folder(tmp_path / "m", "x")
    Tokenizer(models.BPE({"<s>": 0, "a": 1}, [])).save(str(folder / "tokenizer.json"))
    preprocess = Preprocessor.load(folder)
    monkeypatch.setattr(preprocess._encoder, "encode", panic)
    with pytest.raises(PromptRejected, match="out of bounds"):
        preprocess.encode("a")


def test_deep_index_of_weights_is_a_defect(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(DEEP)
    assert any("not a JSON object" in defect for defect in weight_defects(tmp_path))


async def test_hostile_template_is_answered_with_400_before_an_engine_gets_it(
    tmp_path: Path,
) -> None:
    folder = model_folder(tmp_path / "m", "{{ 'x' * 10 ** 12 }}")
    Tokenizer(models.BPE({"<s>": 0, "a": 1}, [])).save(str(folder / "tokenizer.json"))
    tokenizer = Preprocessor.load(folder, model="demo")
    assert len(await tokenizer.probes()) == 2
    builder, body = RequestBuilder(Config(), tokenizer), b'[{"role":"user","content":"Hi"}]'
    with pytest.raises(TemplateFailed, match="template of the model demo needs more than 1024 MiB"):
        await builder.build(CHAT, b"", {"messages": msgspec.Raw(body)}, RequestContext())


def replace(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def sequence(*normalizers: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": normalizers}}


def word_piece(longest: int, prefix: str) -> dict[str, Any]:
    fields = {"max_input_chars_per_word": longest, "continuing_subword_prefix": prefix}
    return {"type": "WordPiece", "unk_token": "u", "vocab": {"u": 0, "a": 1}, **fields}


def unigram(token: str) -> dict[str, Any]:
    return {"type": "Unigram", "unk_id": 0, "vocab": [["u", 0.0], [token, -1.0]]}


IDS = {"a": {"id": "a", "ids": [0] * 100, "tokens": ["a"] * 100}}
TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}] * 100,
            "pair": [], "special_tokens": IDS}  # fmt: skip
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
LONG = {"id": 1, "content": "a" * 1001, "special": True, **FLAGS}
BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "doubled": (sequence(*[replace("a", "aa")] * 40), "1099511627776 times as long"),
    "long": (sequence(replace("a", "a" * 1_000_000)), "1000000 times"),
    "between": (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 10_000}},
        "10001 times",
    ),
    "prepended": (sequence(*[{"type": "Prepend", "prepend": "a" * 1000}] * 3), "times as long"),
    "template": ({"post_processor": TEMPLATE}, "adds 10000 tokens to each text"),
    "words": ({"added_tokens": [{}] * 100_001}, "adds 100001 tokens"),
    "word": ({"added_tokens": [LONG]}, "a special token has more than 1000 characters"),
    "cubic": ({"model": word_piece(10_000, "##")}, "words of 10000 characters; at most 200"),
    "prefix": ({"model": word_piece(100, "#" * 17)}, "pieces of a word of more than 16 characters"),
    "unigram": ({"model": unigram("a" * 129)}, "a token of more than 128 characters"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_tokenizer_that_would_fill_the_memory_or_never_end_is_not_used(
    tmp_path: Path, name: str
) -> None:
    """The library aborts the process or takes hours: no exception can be caught."""
    fields, reason = BOMBS[name]
    folder = model_folder(tmp_path / "m", "")
    plain = json.loads(Tokenizer(models.BPE({"a": 0}, [])).to_str())
    (folder / "tokenizer.json").write_text(json.dumps(plain | fields))
    tokenizer = load_tokenizer(Config(model=Model(path=str(folder))), {})
    assert isinstance(tokenizer, TokenIdsOnly)
    assert reason in tokenizer.reason
