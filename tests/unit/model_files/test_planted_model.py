"""A folder of another user in the current folder is not taken for a hub id. Needs root."""

import os
from pathlib import Path

import pytest

from hpc_dynamo.config import Config, Model
from hpc_dynamo.errors import FileRefused
from hpc_dynamo.model_files import model_source
from hpc_dynamo.preprocess import TokenIdsOnly, load_tokenizer, tokenizer_problem
from tests.support.hub import model_folder

OTHER = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
@pytest.mark.parametrize("planted", ["Qwen", "Qwen/small", "link", "link/small"])
def test_folder_of_another_user_is_not_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "Qwen" / "small")
    Path("link").symlink_to("Qwen")
    name = "link/small" if planted.startswith("link") else "Qwen/small"
    config = Config(model=Model(path=name))
    assert model_source(config, {}).path == Path(name)
    os.lchown(planted, OTHER, OTHER)
    with pytest.raises(FileRefused, match=f"{planted} belongs to another user") as refused:
        model_source(config, {})
    assert refused.value.hint.startswith(f"model.path=./{name} ")
    tokenizer = load_tokenizer(config, {})
    assert isinstance(tokenizer, TokenIdsOnly)
    assert "another user" in tokenizer.reason
    assert "another user" in str(tokenizer_problem(config, {}))
    assert model_source(Config(model=Model(path=f"./{name}")), {}).path == Path(name)
    Path("a").symlink_to(".")
    assert model_source(Config(model=Model(path=f"a/{name}")), {}).path == Path("a", name)
