"""Words on one of several models: those of a run of that model alone, after `models.NAME.`.

What a model says nothing of is as the run says. A model that names its own file of a group
(`models.large.topology=disaggregated`; in a file also by the field that is called as the file)
begins that group anew, and one that names a recipe all that a recipe says.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from hpc_dynamo.config import ServedModel
from hpc_dynamo.errors import ConfigError, unknown_field_error

CALLED = {"engine": "name", "topology": "kind", "router": "policy"}  # by group: as its files are
NODES = "topology.nodes"
RECIPE = "recipe"
OF_MODEL = ("path", "lora")  # fields that a run of one model has under `model`
FIELDS = (*(f.name for f in fields(ServedModel)), RECIPE)
WORD = re.compile(rf"\+*models\.(?P<name>.+?)\.(?P<word>(?:{'|'.join(FIELDS)})[.=].*)", re.DOTALL)


def split_overrides(overrides: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The run's own words, and those of each model. Raises ConfigError for a field that no model
    has."""
    own, of = list[str](), dict[str, list[str]]()
    for word in overrides:
        if match := WORD.fullmatch(word):
            of.setdefault(match["name"], []).append(_alone(match["word"]))
        elif word.lstrip("+").startswith("models."):
            raise _unknown(word)
        else:
            own.append(word)
    return own, of


def from_file(name: str, entry: object) -> tuple[list[str], dict[str, Any]]:
    """What a configuration file says of a model: files of groups that it names, as words, and
    values. Raises ConfigError."""
    if isinstance(entry, bytes):  # a scalar of a file, see overrides.yaml_text
        entry = entry.decode()
    if not isinstance(entry, Mapping):
        raise ConfigError(f"models.{name}={entry} is no model", hint=f"fields: {', '.join(FIELDS)}")
    for field in entry:
        if field not in FIELDS:
            raise unknown_field_error(f"models.{name}", str(field), FIELDS)
    rest = {k: v for k, v in entry.items() if k not in OF_MODEL}
    values = {k: v for k, v in rest.items() if isinstance(v, Mapping)}
    files = {k: v.get(CALLED[k]) for k, v in values.items()}
    files |= {k: v for k, v in rest.items() if isinstance(v, str)}
    groups = [f"{group}={file}" for group, file in files.items() if file]
    own = {k: entry[k] for k in OF_MODEL if k in entry}
    return groups, values | ({"model": own} if own else {})


def merged_overrides(own: Iterable[str], words: list[str], nodes: int | None) -> list[str]:
    """All words of a run of one model; `words` are the model's. The `nodes` are all models', also
    where its recipe says how many it would take alone."""
    anew = {"models", *(key for key in map(_key, words) if "." not in key)}
    kept = [w for w in own if _key(w) == NODES or _key(w).partition(".")[0] not in anew]
    if RECIPE in anew:
        shared = f"{NODES}={'null' if nodes is None else nodes}"
        kept = [*(w for w in kept if _key(w) not in CALLED), shared]
    return [*kept, *words]


def _alone(word: str) -> str:
    return f"model.{word}" if _key(word).partition(".")[0] in OF_MODEL else word


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _unknown(word: str) -> ConfigError:
    """`models.NAME`, or another field of it."""
    _, name, *rest = _key(word).split(".")
    if not rest:
        hint = f"models.{name}.path=…, or another of {', '.join(FIELDS)}"
        return ConfigError(f"{_key(word)} is a model, not a value", hint=hint)
    return unknown_field_error(f"models.{name}", rest[0], FIELDS)
