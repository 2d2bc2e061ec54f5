"""Checks whether an engine can load a model, from its small files and headers."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from hpc_dynamo.config import Config, Engine
from hpc_dynamo.model_files import hub
from hpc_dynamo.model_files.source import (
    Origin,
    Source,
    adapter_sources,
    engine_environment,
    model_source,
    option,
    tokenizer_source,
)
from hpc_dynamo.model_files.weights import file_defects, weight_defects

SIMULATOR = "simulator"  # loads no weights and tokenizes by itself
# Values of load-format: weights are made up, read from elsewhere, or stored in another layout.
_OTHER_FORMATS = (
    "dummy", "ipc_cache", "modelexpress", "remote", "runai_streamer", "sharded_state", "tensorizer",
)  # fmt: skip
_MODELSCOPE = ("VLLM_USE_MODELSCOPE", "SGLANG_USE_MODELSCOPE")  # another hub, another cache
# One of these groups is enough. Sources: transformers (tokenization files of its models),
# mistral-common (tekken.json, tokenizer.model.v*), tiktoken-based models of the hub.
_TOKENIZERS = (
    ("tokenizer.json",), ("tokenizer.model",), ("tokenizer.model.v*",), ("tekken.json",),
    ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",), ("sentencepiece.bpe.model",),
    ("*.tiktoken",), ("tiktoken.model",), ("tokenization_*.py",),
)  # fmt: skip
_SMALL = (
    "config.json", "params.json", "tokenizer.json", "generation_config.json",
    "preprocessor_config.json",
)  # fmt: skip


# Phrases for defects of existing files: without force they would not be downloaded again.
_DAMAGE = ("truncated", "empty", ": not a ", "pointer")


class Severity(StrEnum):
    """Treatment of a problem before submission."""

    error = "error"  # the engine cannot start: the job is refused
    warning = "warning"  # it may not start, or not work as intended
    note = "note"  # it cannot be checked here


@dataclass(frozen=True)
class Problem:
    """Problem of a model, and what to try."""

    severity: Severity
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what}\n  try: {self.fix}"


def check_models(
    config: Config, environ: Mapping[str, str], *, on_node: bool
) -> tuple[Problem, ...]:
    """Check every model of a run, see `check_model`; of several, problems name the model."""
    return tuple(
        replace(problem, what=f"models.{name}: {problem.what}") if name else problem
        for name, own in config.by_model.items()
        for problem in check_model(own, environ, on_node=on_node)
    )


def check_model(
    config: Config, environ: Mapping[str, str], *, on_node: bool = True
) -> Iterator[Problem]:
    """Check the model, tokenizer and LoRA adapters of a run of one model.

    `on_node`: this machine starts engines; a path that is not here is then an error. On a login
    node the path may be visible on the compute nodes only, so it is a note.
    """
    if config.route.engines or not config.model.path:
        return
    model, tokenizer = model_source(config, environ), tokenizer_source(config, environ)
    if config.engine.name == SIMULATOR:
        if model.path and model.path.is_dir():
            yield from _defective(model, _simulated_defects(model.path))
        elif model.path is None and model.origin is Origin.disk and on_node:
            yield _missing(model, on_node=on_node)
        return
    yield from _check(
        config.engine, environ, model, _model_defects(config.engine, model), on_node=on_node
    )
    if tokenizer != model and not option(config.engine, "skip-tokenizer-init"):
        defects = _tokenizer_defects(tokenizer.path) if tokenizer.path else []
        yield from _check(config.engine, environ, tokenizer, defects, on_node=on_node)
    for adapter in adapter_sources(config, environ):
        defects = _adapter_defects(adapter.path) if adapter.path else []
        yield from _check(config.engine, environ, adapter, defects, on_node=on_node)


def _check(
    engine: Engine, environ: Mapping[str, str], source: Source, defects: list[str], *, on_node: bool
) -> Iterator[Problem]:
    if source.path:
        yield from _defective(source, defects)
    elif source.origin is Origin.disk:
        yield _missing(source, on_node=on_node)
    elif source.origin is Origin.hub:
        env = engine_environment(engine, environ)
        if not any(env.get(name, "").upper() in ("1", "TRUE") for name in _MODELSCOPE):
            yield _not_cached(source, offline=hub.is_offline(env))


def _missing(source: Source, *, on_node: bool) -> Problem:
    reason = _unreadable(source)
    if reason:
        what, fix = f"{source} cannot be read: {reason}", f"ls -ld {shlex.quote(source.name)}"
        return Problem(Severity.error, what, fix)
    if on_node:
        fix = "a path on a shared disk, which every node sees"
        return Problem(Severity.error, f"{source} is not there", fix)
    what = f"{source} is not on this machine, so its files will be checked on the nodes"
    fix = f"ls -ld {shlex.quote(source.name)}, if it should be visible here"
    return Problem(Severity.note, what, fix)


def _unreadable(source: Source) -> str:
    """Return why a path cannot even be looked up; empty if it does not exist."""
    try:
        Path(source.name).expanduser().stat()
    except PermissionError as e:
        return e.strerror or str(e)
    except OSError:
        return ""
    return ""


def _not_cached(source: Source, *, offline: bool) -> Problem:
    fix = f"{source.download}, or {source.field}=FOLDER"
    what = f"{source} is neither a folder here nor in the Hugging Face cache {source.cache}"
    if offline:
        return Problem(Severity.error, f"{what}, and HF_HUB_OFFLINE forbids downloads", fix)
    why = "engines on nodes without internet access will fail; others download it first"
    return Problem(Severity.warning, f"{what}: {why}", fix)


def _defective(source: Source, defects: list[str]) -> Iterator[Problem]:
    """Yield at most one problem, with all defects of a model in one line."""
    if not defects:
        return
    where = f" ({source.path})" if source.origin is Origin.hub else ""
    what = f"{source}{where} cannot be loaded: {'; '.join(defects)}"
    yield Problem(Severity.error, what, _remedy(source, defects))


def _remedy(source: Source, defects: list[str]) -> str:
    if source.origin is not Origin.hub:
        if any("Git LFS" in defect for defect in defects):
            return f"git -C {source.path} lfs pull"
        return f"hf download ORG/NAME --local-dir {source.path}, or another {source.field}"
    if any(sign in defect for defect in defects for sign in _DAMAGE):
        return f"{source.download} --force-download"
    begun = hub.is_interrupted(source.cache, source.repository)
    return source.download + (" (it resumes the interrupted download)" if begun else "")


def _model_defects(engine: Engine, source: Source) -> list[str]:
    path = source.path
    if path is None or (path / "model_index.json").exists():  # a pipeline of several models
        return []
    if not path.is_dir():
        return file_defects(path.parent, [path.name])
    if reason := _no_folder(path):
        return [reason]
    defects = _config_defects(engine, path)
    own_tokenizer = not any(option(engine, n) for n in ("tokenizer", "tokenizer-path"))
    if own_tokenizer and option(engine, "skip-tokenizer-init") != "True":
        defects += _tokenizer_defects(path)
    if not _has_weights_elsewhere(engine, source):
        defects += weight_defects(path)
    return defects


def _no_folder(path: Path) -> str:
    try:
        return "" if any(path.iterdir()) else "the folder is empty"
    except OSError as e:
        return f"the folder cannot be read ({e.strerror or e})"


def _has_weights_elsewhere(engine: Engine, source: Source) -> bool:
    form = option(engine, "load-format")
    moved = source.origin is Origin.hub and bool(option(engine, "download-dir"))
    return moved or form.startswith(_OTHER_FORMATS)


def _config_defects(engine: Engine, folder: Path) -> list[str]:
    """Return defects of config.json, or of `params.json`, Mistral's own form of it."""
    there = [name for name in _SMALL if (folder / name).exists() or (folder / name).is_symlink()]
    defects = file_defects(folder, there)
    if option(engine, "hf-config-path") or {"config.json", "params.json"} & set(there):
        return defects
    return ["config.json: missing", *defects]


def _tokenizer_defects(folder: Path) -> list[str]:
    if not folder.is_dir():
        return file_defects(folder.parent, [folder.name])
    groups = ([name for pattern in each for name in _matching(folder, pattern)]
              for each in _TOKENIZERS if all(_matching(folder, p) for p in each))  # fmt: skip
    found = [file_defects(folder, names) for names in groups]
    if any(not defects for defects in found):
        return []
    return min(found, key=len) if found else ["there is no tokenizer (tokenizer.json)"]


def _matching(folder: Path, pattern: str) -> list[str]:
    return sorted(file.name for file in folder.glob(pattern))


def _adapter_defects(folder: Path) -> list[str]:
    if not folder.is_dir():
        return ["it is not a folder"]
    defects = file_defects(folder, ["adapter_config.json"])
    weights = [f"adapter_model.{kind}" for kind in ("safetensors", "bin", "pt")]
    there = [name for name in weights if (folder / name).exists()]
    if not there:
        return [*defects, "there is no adapter_model.safetensors"]
    return defects + file_defects(folder, there)


def _simulated_defects(folder: Path) -> list[str]:
    """Return defects of small files: the simulator reads none, the endpoint needs the tokenizer."""
    if reason := _no_folder(folder):
        return [reason]
    there = [name for name in _SMALL if (folder / name).exists() or (folder / name).is_symlink()]
    return file_defects(folder, there)
