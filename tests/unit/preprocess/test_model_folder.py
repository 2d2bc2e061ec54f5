"""Configuration files of model folders, complete and incomplete."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from hpc_dynamo.preprocess import NoTokenizer, Preprocessor
from tests.unit.preprocess.conftest import model_folder


def test_tokenizer_includes_tokens_of_configuration(tmp_path: Path) -> None:
    """`add_bos_token` is ignored if there is a tokenizer.json, as in transformers 5."""
    decoder = {"5": {"content": "<tool>", "special": False, "normalized": False}}
    config: dict[str, Any] = {"add_bos_token": True, "added_tokens_decoder": decoder}
    folder = model_folder(tmp_path / "m", "", **config)
    Tokenizer(models.BPE({"<s>": 0, "a": 1}, [])).save(str(folder / "tokenizer.json"))
    preprocess = Preprocessor.load(folder)
    assert list(preprocess.encode("a<tool>a<s></s><pad>", special=True).ids) == [1, 2, 1, 0, 3, 4]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096}, 4096),
        (
            {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}},
            16384,
        ),
        (
            {"max_position_embeddings": 8192, "rope_scaling": {"rope_type": "yarn", "factor": 4}},
            8192,
        ),
        ({"text_config": {"max_position_embeddings": 100}}, 100),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            4096,
        ),
    ],
)
def test_context_length(config: dict[str, Any], wanted: int | None, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", "")
    (folder / "config.json").write_text(json.dumps(config))
    Tokenizer(models.BPE({"a": 0}, [])).save(str(folder / "tokenizer.json"))
    assert Preprocessor.load(folder).context_length == wanted


def test_folder_without_tokenizer_raises(tmp_path: Path) -> None:
    with pytest.raises(NoTokenizer, match=r"no tokenizer\.json"):
        Preprocessor.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(NoTokenizer, match=r"tokenizer\.json"):
        Preprocessor.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(NoTokenizer, match=r"config\.json is not JSON"):
        Preprocessor.load(tmp_path)
