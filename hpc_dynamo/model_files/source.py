"""Resolution of `model.path`, a tokenizer or a LoRA adapter on this machine."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpc_dynamo.config import Config, Engine
from hpc_dynamo.errors import FileRefused
from hpc_dynamo.model_files import hub

ROOT = 0


class Origin(StrEnum):
    """Place that an engine loads a model from."""

    disk = "disk"  # a folder or a GGUF file
    hub = "hub"  # the Hugging Face hub, through its cache
    remote = "remote"  # a URL that the engine reads by itself, such as s3://


@dataclass(frozen=True)
class Source:
    """Model, tokenizer or adapter by its name in the configuration."""

    field: str  # such as model.path
    name: str  # as the user wrote it
    origin: Origin
    path: Path | None = None  # its folder or file here; None: it is not here
    revision: str = ""
    cache: Path = Path()  # hub cache, if the name is a hub id
    prefix: str = ""  # environment that a download command needs to fill this cache

    def __str__(self) -> str:
        return f"{self.field}={self.name}"

    @property
    def repository(self) -> str:
        """Return the hub id without the quantization that vLLM accepts after a colon."""
        return self.name.partition(":")[0]

    @property
    def download(self) -> str:
        """Return the shell command that fills the hub cache."""
        revision = f" --revision {shlex.quote(self.revision)}" if self.revision else ""
        return f"{self.prefix}hf download {self.repository}{revision}"


def locate(
    field: str, name: str, engine: Engine, environ: Mapping[str, str], revision: str = ""
) -> Source:
    """Resolve a name. A folder that exists here wins over a hub id of the same name.

    Raises FileRefused if another user made the folder, so that it could be a trap.
    """
    here = Path(name).expanduser()
    there = os.path.exists(here)
    if there and hub.is_hub_id(name.partition(":")[0]):
        _refuse_planted(field, here)
    if there or name.startswith(("/", ".", "~")):
        return Source(field, name, Origin.disk, here if there else None)
    if "://" in name:
        return Source(field, name, Origin.remote)
    if not hub.is_hub_id(name.partition(":")[0]):
        return Source(field, name, Origin.disk)
    cache = hub.cache_folder(engine_environment(engine, environ))
    other = cache != hub.cache_folder(environ)
    prefix = "HF_HUB_OFFLINE=0 " if hub.is_offline(environ) else ""
    prefix += f"HF_HUB_CACHE={shlex.quote(str(cache))} " if other else ""
    found = Source(field, name, Origin.hub, None, revision, cache, prefix)
    moved = option(engine, "download-dir")  # the engine's own cache, searched first
    caches = [Path(moved).expanduser(), cache] if moved else [cache]
    snapshots = (hub.snapshot(each, found.repository, revision) for each in caches)
    return replace(found, path=next(filter(None, snapshots), None))


def _refuse_planted(field: str, path: Path) -> None:
    """Raise FileRefused if a part of a path in the current folder belongs to another user.

    The user may have meant a hub id: `./` before it shows that this folder is meant.
    """
    parts = [part for part in (path, *path.parents) if part != Path()]
    for part, follow in [(part, False) for part in parts] + [(path, True)]:
        uid = os.stat(part, follow_symlinks=follow).st_uid
        if uid not in (os.geteuid(), ROOT):
            what = f"{field}={path}: {part.absolute()} belongs to another user (user id {uid})"
            raise FileRefused(what, hint=f"{field}=./{path} if this folder is meant")


def engine_environment(engine: Engine, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the engine: `engine.env` on top of that of the process."""
    return {**environ, **engine.env}


def model_source(config: Config, environ: Mapping[str, str]) -> Source:
    """Resolve `model.path` of a run of one model."""
    return locate(
        "model.path", config.model.path, config.engine, environ, option(config.engine, "revision")
    )


def tokenizer_source(config: Config, environ: Mapping[str, str]) -> Source:
    """Resolve the tokenizer: an engine option of its own, or that of the model."""
    revision = option(config.engine, "tokenizer-revision") or option(config.engine, "revision")
    for name in ("tokenizer", "tokenizer-path"):
        if given := option(config.engine, name):
            return locate(f"engine.args.{name}", given, config.engine, environ, revision)
    return locate("model.path", config.model.path, config.engine, environ, revision)


def adapter_sources(config: Config, environ: Mapping[str, str]) -> tuple[Source, ...]:
    """Resolve the LoRA adapters of a run of one model."""
    adapters = config.model.lora.items()
    return tuple(
        locate(f"model.lora.{name}", path, config.engine, environ) for name, path in adapters
    )


def option(engine: Engine, name: str) -> str:
    """Return an engine option as text, spelled with dashes or underscores; empty if not given."""
    given: dict[str, Any] = {key.replace("_", "-"): value for key, value in engine.args.items()}
    value = given.get(name)
    return "" if value is None else str(value)
