"""Resolution of model files, and defects that no engine could load."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import try_to_load_from_cache

from hpc_dynamo.config import Config, Engine, Model
from hpc_dynamo.model_files import Problem, Severity, check_model, model_source, tokenizer_source
from tests.support.hub import REPOSITORY, adapter_folder, cached, model_folder, safetensors

INDEX, FIRST = "model.safetensors.index.json", "model-00001-of-00002.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 16000000000\n"


def config(path: object, engine: str = "vllm", **args: object) -> Config:
    return Config(model=Model(path=str(path)), engine=Engine(name=engine, args=args))


def problems(
    of: Config, environ: Mapping[str, str] | None = None, *, on_node: bool = True
) -> list[Problem]:
    return list(check_model(of, environ or {}, on_node=on_node))


def the_problem(of: Config, environ: Mapping[str, str] | None = None) -> Problem:
    (found,) = problems(of, environ)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "model")


@pytest.fixture
def home(tmp_path: Path, folder: Path) -> dict[str, str]:
    """An environment whose cache holds the model."""
    cached(tmp_path / "hf" / "hub", folder)
    return {"HF_HOME": str(tmp_path / "hf")}


# Where a hub id is found.


def test_hub_id_resolves_to_cached_snapshot(home: dict[str, str], tmp_path: Path) -> None:
    found = model_source(config(REPOSITORY), home)
    hub = tmp_path / "hf" / "hub"
    theirs = try_to_load_from_cache(REPOSITORY, "config.json", cache_dir=hub)
    assert found.path
    assert str(found.path / "config.json") == theirs
    assert (found.path / FIRST).read_bytes() == safetensors()


@pytest.mark.parametrize(
    "environ",
    [
        {"HF_HUB_CACHE": "{root}/hub"},
        {"HF_HUB_CACHE": "$SCRATCH/hub", "SCRATCH": "{root}", "HF_HOME": "/nowhere"},
        {"HUGGINGFACE_HUB_CACHE": "{root}/hub"},
        {"HF_HOME": "{root}"},
        {"XDG_CACHE_HOME": "{root}/xdg"},
    ],
)
def test_cache_variables_are_followed(
    environ: dict[str, str], tmp_path: Path, folder: Path
) -> None:
    environ = {name: value.format(root=tmp_path) for name, value in environ.items()}
    base = tmp_path / "xdg" / "huggingface" if "XDG_CACHE_HOME" in environ else tmp_path
    snapshot = cached(base / "hub", folder)
    assert model_source(config(REPOSITORY), environ).path == snapshot


def test_engine_environment_overrides_process_environment(tmp_path: Path, folder: Path) -> None:
    snapshot = cached(tmp_path / "own" / "hub", folder)
    one = config(REPOSITORY)
    own = replace(one, engine=replace(one.engine, env={"HF_HOME": str(tmp_path / "own")}))
    assert model_source(own, {"HF_HOME": "/nowhere"}).path == snapshot
    assert model_source(one, {"HF_HOME": "/nowhere"}).path is None


def test_missing_revision_is_not_replaced(tmp_path: Path, folder: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    main = cached(tmp_path / "hub", folder)
    pull_request = cached(tmp_path / "hub", folder, revision="refs/pr/3")
    found = {
        revision: model_source(config(REPOSITORY, revision=revision), environ).path
        for revision in ("main", "refs/pr/3", main.name, "v2")
    }
    assert found == {"main": main, "refs/pr/3": pull_request, main.name: main, "v2": None}


def test_tokenizer_option_names_another_repository(tmp_path: Path, folder: Path) -> None:
    environ = {"HF_HOME": str(tmp_path)}
    snapshot = cached(tmp_path / "hub", folder, "other/tokenizer")
    for engine, name in (("vllm", "tokenizer"), ("sglang", "tokenizer_path")):
        own = config(folder, engine, **{name: "other/tokenizer"})
        assert tokenizer_source(own, environ).path == snapshot


def test_local_folder_overrides_hub_cache(
    home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model_folder(tmp_path / "demo" / "tiny")
    assert model_source(config(REPOSITORY), home).path == Path(REPOSITORY)


# What is whole.


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm", "simulator"])
def test_complete_model_has_no_problem(engine: str, folder: Path, home: dict[str, str]) -> None:
    assert problems(config(folder, engine)) == []
    assert problems(config(REPOSITORY, engine), home) == []


def _only_gguf(folder: Path) -> None:
    _without_weights(folder)
    (folder / "model-q4.gguf").write_bytes(b"GGUF" + bytes(20))


def _mistral(folder: Path) -> None:
    _without_weights(folder)
    (folder / "config.json").rename(folder / "params.json")
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    (folder / "consolidated.safetensors").write_bytes(safetensors())


def _old(folder: Path) -> None:
    _without_weights(folder)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    (folder / "training_args.bin").write_bytes(b"")


def _gpt2(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    (folder / "merges.txt").write_text("a b")


def _two_sets(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_text(POINTER)


def _without_weights(folder: Path) -> None:
    for file in folder.glob("*safetensors*"):
        file.unlink()


@pytest.mark.parametrize("change", [_only_gguf, _mistral, _old, _gpt2, _two_sets])
def test_other_model_layouts_are_complete(change: Callable[[Path], None], folder: Path) -> None:
    change(folder)
    assert problems(config(folder)) == []


def test_options_replace_missing_files(folder: Path, tmp_path: Path) -> None:
    _without_weights(folder)
    (folder / "tokenizer.json").unlink()
    (problem,) = problems(config(folder))
    other = model_folder(tmp_path / "other")
    assert "no weights" in problem.what
    assert "no tokenizer" in problem.what
    assert problems(config(folder, tokenizer=str(other), **{"load-format": "dummy"})) == []
    assert problems(config(folder, skip_tokenizer_init=True, load_format="runai_streamer")) == []


def test_gguf_file_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF" + bytes(20))
    assert problems(config(file)) == []
    file.write_text(POINTER)
    assert "m.gguf: a Git LFS pointer" in the_problem(config(file)).what


# What is not.


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _write(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content

    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def _remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def _without_index(folder: Path) -> None:
    _remove(INDEX, FIRST)(folder)


def _broken_link(folder: Path) -> None:
    _remove(FIRST)(folder)
    (folder / FIRST).symlink_to("../../blobs/gone")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_empty, "the folder is empty"),
        (_remove("config.json"), "config.json: missing"),
        (_write("config.json", '{"a": '), "config.json: not a JSON object"),
        (_write("config.json", "{}"), "config.json: an empty JSON object"),
        (_write("config.json", b"\xff\xfe{"), "config.json: not a JSON object"),
        (_remove("tokenizer.json"), "there is no tokenizer"),
        (_write("tokenizer.json", POINTER), "tokenizer.json: a Git LFS pointer"),
        (_without_weights, "there are no weights"),
        (_remove(FIRST), f"{FIRST}: missing"),
        (_without_index, f"{FIRST}: missing"),
        (_write(FIRST, b""), f"{FIRST}: empty"),
        (_write(FIRST, POINTER), f"{FIRST}: a Git LFS pointer"),
        (_write(FIRST, safetensors()[:-1]), f"{FIRST}: truncated ("),
        (_write(FIRST, safetensors()[:20]), f"{FIRST}: truncated or not a safetensors file"),
        (_write(FIRST, b"<html>404 Not Found</html>"), f"{FIRST}: truncated or not a safetensors"),
        (_write(INDEX, "[]"), f"{INDEX}: not a JSON object"),
        (_broken_link, f"{FIRST}: not downloaded (a broken link)"),
    ],
)
def test_unloadable_model_is_an_error(
    change: Callable[[Path], None], said: str, folder: Path
) -> None:
    change(folder)
    problem = the_problem(config(folder))
    assert problem.severity is Severity.error
    assert problem.what.startswith(f"model.path={folder} cannot be loaded: ")
    assert said in problem.what
    assert "\n" not in problem.what


def test_defects_are_reported_in_one_line(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", shards=30)
    for file in folder.glob("*.safetensors"):
        file.write_text(POINTER)
    (folder / "config.json").unlink()
    problem = the_problem(config(folder))
    assert "config.json: missing; model-00001-of-00030.safetensors, " in problem.what
    assert "and 27 more: a Git LFS pointer" in problem.what
    assert problem.fix == f"git -C {folder} lfs pull"


def test_interrupted_download_suggests_resume(tmp_path: Path, folder: Path) -> None:
    snapshot = cached(tmp_path / "hub", folder)
    (snapshot / FIRST).unlink()
    blob = tmp_path / "hub" / "models--demo--tiny" / "blobs" / "ab.incomplete"
    blob.write_bytes(b"x")
    problem = the_problem(config(REPOSITORY), {"HF_HOME": str(tmp_path)})
    assert problem.what.startswith(f"model.path={REPOSITORY} ({snapshot}) cannot be loaded: ")
    assert problem.fix.startswith(f"hf download {REPOSITORY} (it resumes")


def test_damaged_cache_file_suggests_forced_download(tmp_path: Path, folder: Path) -> None:
    """The hub library takes a file that is there for whole."""
    snapshot = cached(tmp_path / "hub", folder)
    (snapshot / FIRST).write_bytes(safetensors()[:-1])
    problem = the_problem(config(REPOSITORY), {"HF_HOME": str(tmp_path)})
    assert f"{FIRST}: truncated (" in problem.what
    assert problem.fix == f"hf download {REPOSITORY} --force-download"


def test_uncached_hub_id_warns_or_fails_offline(tmp_path: Path) -> None:
    cache = {"HF_HOME": str(tmp_path)}
    problem = the_problem(config("org/name"), cache)
    assert (problem.severity, problem.fix) == (
        Severity.warning,
        "hf download org/name, or model.path=FOLDER",
    )
    assert f"cache {tmp_path}/hub" in problem.what
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"TRANSFORMERS_OFFLINE": "true"}):
        assert the_problem(config("org/name"), cache | offline).severity is Severity.error
    assert the_problem(config("org/name"), cache | {"HF_HUB_OFFLINE": "0"}).severity == "warning"
    assert problems(config("org/name"), cache | {"VLLM_USE_MODELSCOPE": "True"}) == []


def test_download_command_uses_engine_cache(tmp_path: Path) -> None:
    one = config("org/name", revision="v2")
    env = {"HF_HOME": str(tmp_path / "my cache"), "HF_HUB_OFFLINE": "1"}
    problem = the_problem(replace(one, engine=replace(one.engine, env=env)))
    cache = f"HF_HUB_CACHE='{tmp_path}/my cache/hub'"
    assert problem.severity is Severity.error
    assert problem.fix.startswith(f"{cache} hf download org/name --revision v2, or ")


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_download_command_overrides_offline_mode(name: str, tmp_path: Path) -> None:
    problem = the_problem(config("org/name"), {"HF_HOME": str(tmp_path), name: "1"})
    assert problem.fix == "HF_HUB_OFFLINE=0 hf download org/name, or model.path=FOLDER"


def test_path_missing_on_login_node_is_a_note(tmp_path: Path) -> None:
    gone = config(tmp_path / "gone")
    assert [p.severity for p in problems(gone, on_node=False)] == [Severity.note]
    assert [p.severity for p in problems(gone, on_node=True)] == [Severity.error]


def test_lora_adapters_are_checked(folder: Path, tmp_path: Path) -> None:
    whole = adapter_folder(tmp_path / "whole")
    half = adapter_folder(tmp_path / "half")
    (half / "adapter_model.safetensors").unlink()
    lora = {"a": str(whole), "b": str(half), "c": "org/adapter"}
    found = problems(replace(config(folder), model=Model(path=str(folder), lora=lora)))
    assert [(p.severity, p.what.partition(" ")[0]) for p in found] == [
        (Severity.error, f"model.lora.b={half}"),
        (Severity.warning, "model.lora.c=org/adapter"),
    ]


def test_simulator_needs_no_model(tmp_path: Path) -> None:
    for path in ("", "org/name", tmp_path / "gone"):
        assert problems(config(path, "simulator"), on_node=False) == []
    assert "is not there" in the_problem(config(tmp_path / "gone", "simulator")).what
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in the_problem(config(tmp_path / "empty", "simulator")).what
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"max_position_embeddings": 8}))
    assert problems(config(tmp_path / "empty", "simulator")) == []


def test_model_url_is_not_checked() -> None:
    assert problems(config("s3://bucket/model")) == []
