"""A folder of another user in the current folder is not taken for a hub id. Needs root."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_dynamo.config import Config, Engine, Model
from hpc_dynamo.errors import FileRefused
from hpc_dynamo.model_files import check_model, model_source
from hpc_dynamo.model_files.weights import weight_defects
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


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def _sparse(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(1 << 40)


@pytest.mark.parametrize("make", [_pipe, _endless, _sparse])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_file_that_is_endless_or_waits_is_a_defect(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    """Links come with a clone of the author's repository, pipes on a shared disk."""
    folder = model_folder(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    config = Config(model=Model(path=str(folder)), engine=Engine(name="vllm"))
    assert name in "".join(problem.what for problem in check_model(config, {}))
    assert isinstance(load_tokenizer(config, {}), TokenIdsOnly)


def test_weights_that_an_index_names_are_not_waited_for(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    os.mkfifo(folder / "pipe.safetensors")
    index = {"weight_map": {"a": "pipe.safetensors", "b": "/dev/zero"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "it is not a regular file" in str(weight_defects(folder))
