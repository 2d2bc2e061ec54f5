"""Settings of a run that its results depend on, and how two runs differ in them.

The answers of a batch depend on the model, its adapters, the engine, the engine's options and the
fields that are merged into each request. They do not depend on the number of workers, their nodes
or the routing, nor on the options in an engine's `tuning_options.txt`: those change speed, memory
or logs, and at most the last bits of numbers, as between two GPUs or two batch sizes. Neither the
files in the model's folder nor the engine's environment (`engine.env`) are compared.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hpc_dynamo.config import Config, Role
from hpc_dynamo.config.merge import parse_json
from hpc_dynamo.engines import ENGINES

Settings = dict[str, Any]  # values of JSON, by the dotted name of the field
ARGS = ("engine.args.", *(f"engine.{role}.args." for role in Role))


@dataclass(frozen=True)
class SettingChange:
    """One field in which two runs differ. None: not set."""

    field: str
    old: Any
    new: Any

    @property
    def in_options(self) -> bool:
        """Return True if it is an option of the engine."""
        return self.field.startswith(ARGS)

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.old)} → {_shown(self.new)}"


def answer_settings(config: Config) -> Settings:
    """Return the settings that the answers of a batch depend on."""
    engine = config.engine
    found: Settings = {
        "model.path": _absolute(config.model.path),
        "model.name": config.served_name,
        "engine.name": engine.name,
        **dict(_flat("model.lora", {n: _absolute(p) for n, p in config.model.lora.items()})),
        **dict(_flat("batch.body_defaults", _as_json(config.batch.body_defaults))),
        **dict(_options("engine", engine.name, engine.args)),
    }
    for role in Role:
        found |= dict(_options(f"engine.{role}", engine.name, engine.role_options(role).args))
    return {name: value for name, value in found.items() if value is not None}


def profile_settings(config: Config) -> Settings:
    """Return the settings that a profile depends on: all options, since times depend on them."""
    sections = {"engine": config.engine, "model": config.model, "topology": config.topology}
    plain = _as_json(sections)
    for options in (plain["engine"], *(plain["engine"][role] for role in Role)):
        options["args"] = _parsed(options["args"])
    flat = dict(_flat("", plain))
    texts = {name: _text(value) for name, value in flat.items() if name.startswith(ARGS)}
    found = flat | texts | {"model.path": _absolute(config.model.path)}
    return {name: value for name, value in found.items() if value is not None}


def differences(
    old: Settings, new: Settings, defaults: Settings | None = None
) -> list[SettingChange]:
    """Return the fields that differ, in the order of `old`, then of `new`.

    A field that is missing on one side has the value of `usual`: an older version of the
    toolkit did not record it.
    """
    default = defaults or {}
    pairs = (
        SettingChange(name, old.get(name, default.get(name)), new.get(name, default.get(name)))
        for name in dict.fromkeys((*old, *new))
    )
    return [d for d in pairs if d.old != d.new]


def changes_answers(engine: str, option: str) -> bool:
    """Return True if another value of an engine option may change answers.

    `option` is a name of the command line; fields of a mapping follow after dots. A name in
    `tuning_options` covers the fields below it.
    """
    parts = option.split(".")
    known = ENGINES[engine].tuning_options if engine in ENGINES else frozenset()
    return not any(".".join(parts[:n]) in known for n in range(1, len(parts) + 1))


def _options(where: str, engine: str, args: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield options as text of a command line, so that 2048 and "2048" are equal."""
    for name, value in _flat("", _as_json(_parsed(args))):
        option = name.replace("_", "-")
        if changes_answers(engine, option):
            yield f"{where}.args.{option}", _text(value)


def _parsed(args: Mapping[str, Any]) -> Settings:
    """Return options with the content of JSON, so that its blanks make no difference."""
    return {name: parse_json(value) for name, value in args.items()}


def _text(value: Any) -> Any:
    """Return a flag or number as text of a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _flat(where: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings, by their dotted names."""
    for name, value in values.items():
        full = f"{where}.{name}".lstrip(".")
        if isinstance(value, Mapping):
            yield from _flat(full, value)
        else:
            yield full, value


def _as_json(value: Any) -> Any:
    """Return the value as it is read back from a JSON file."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _absolute(path: str) -> str:
    """Return the absolute path of a folder. Links are kept: nodes may resolve them differently."""
    return str(Path(path).absolute()) if path and Path(path).exists() else path


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
