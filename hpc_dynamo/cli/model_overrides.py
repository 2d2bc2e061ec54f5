"""Overrides of one of several models, `models.NAME.FIELD=VALUE`.

Each model is composed as a run of its own. A model inherits the run's settings. If it selects a
file of a group (`models.large.topology=disaggregated`), it inherits nothing of that group. If it
selects a recipe, it inherits none of the groups that a recipe sets. A file selects a group's file
also by the field in `FILE_FIELDS`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from hpc_dynamo.config import ServedModel
from hpc_dynamo.errors import ConfigError, unknown_field_error

# Field of each group whose value is the name of its file.
FILE_FIELDS = {"engine": "name", "topology": "kind", "router": "policy"}
NODES = "topology.nodes"
RECIPE = "recipe"
OF_MODEL = ("path", "lora")  # a run of one model has these fields in its section `model`
FIELDS = (*(f.name for f in fields(ServedModel)), RECIPE)
OVERRIDE = re.compile(
    rf"\+*models\.(?P<name>.+?)\.(?P<override>(?:{'|'.join(FIELDS)})[.=].*)", re.DOTALL
)


def split_overrides(overrides: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the overrides of the run, and those of each model as a run of its own has them.

    Raises ConfigError for a field that models do not have.
    """
    own, of_models = list[str](), dict[str, list[str]]()
    for word in overrides:
        if match := OVERRIDE.fullmatch(word):
            of_models.setdefault(match["name"], []).append(_of_own_run(match["override"]))
        elif word.lstrip("+").startswith("models."):
            raise _unknown_field(word)
        else:
            own.append(word)
    return own, of_models


def from_file(name: str, entry: object) -> tuple[list[str], dict[str, Any]]:
    """Return the group files that a model's entry in a file selects, as overrides, and its values.

    Raises ConfigError if the entry is not a mapping of fields of a model.
    """
    if isinstance(entry, bytes):  # a scalar, see overrides.yaml_text
        entry = entry.decode()
    if not isinstance(entry, Mapping):
        what = f"models.{name}={entry} is not a model"
        raise ConfigError(what, hint=f"fields: {', '.join(FIELDS)}")
    for field in entry:
        if field not in FIELDS:
            raise unknown_field_error(f"models.{name}", str(field), FIELDS)
    rest = {k: v for k, v in entry.items() if k not in OF_MODEL}
    values = {k: v for k, v in rest.items() if isinstance(v, Mapping)}
    files = {k: v.get(FILE_FIELDS[k]) for k, v in values.items()}
    files |= {k: v for k, v in rest.items() if isinstance(v, str)}
    groups = [f"{group}={file}" for group, file in files.items() if file]
    own = {k: entry[k] for k in OF_MODEL if k in entry}
    return groups, values | ({"model": own} if own else {})


def merged_overrides(own: Iterable[str], of_model: list[str], nodes: int | None) -> list[str]:
    """Return all overrides for the run of one model: inherited ones first.

    `nodes` is the number of nodes of all models, which also overrides the model's recipe.
    """
    replaced = {"models", *(key for key in map(_key, of_model) if "." not in key)}
    kept = [w for w in own if _key(w) == NODES or _key(w).partition(".")[0] not in replaced]
    if RECIPE in replaced:
        shared = f"{NODES}={'null' if nodes is None else nodes}"
        kept = [*(w for w in kept if _key(w) not in FILE_FIELDS), shared]
    return [*kept, *of_model]


def _of_own_run(override: str) -> str:
    return f"model.{override}" if _key(override).partition(".")[0] in OF_MODEL else override


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _unknown_field(override: str) -> ConfigError:
    _, name, *rest = _key(override).split(".")
    if not rest:
        hint = f"models.{name}.path=…, or another of {', '.join(FIELDS)}"
        return ConfigError(f"{_key(override)} is a model, not a value", hint=hint)
    return unknown_field_error(f"models.{name}", rest[0], FIELDS)
