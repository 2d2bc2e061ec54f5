"""Configuration files of model folders, complete and incomplete."""

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


def test_folder_without_tokenizer_raises(tmp_path: Path) -> None:
    with pytest.raises(NoTokenizer, match=r"no tokenizer\.json"):
        Preprocessor.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(NoTokenizer, match=r"tokenizer\.json"):
        Preprocessor.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(NoTokenizer, match=r"config\.json is not JSON"):
        Preprocessor.load(tmp_path)
