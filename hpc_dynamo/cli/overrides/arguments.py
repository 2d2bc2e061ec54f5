"""Read command-line arguments: FIELD=VALUE, GROUP=FILE, and `~NAME` to leave one out."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from hpc_dynamo.cli.overrides import field_lookup
from hpc_dynamo.cli.overrides.field_lookup import Field
from hpc_dynamo.cli.overrides.files import Folders, refuse_unknown_choice
from hpc_dynamo.cli.overrides.suggest import suggestion
from hpc_dynamo.config import Config, Role, Topology, TopologyKind
from hpc_dynamo.errors import ConfigError, quoted_override

INPUTS = (".jsonl", ".json", ".csv", ".txt", ".gz")  # endings of files of prompts
HYDRAS = "hydra."  # settings of Hydra itself


@dataclass(frozen=True)
class Assignment:
    """Value for a field; the text of a section or mapping is parsed by `tree`."""

    field: Field
    text: str


@dataclass(frozen=True)
class Removal:
    """Key to leave out of the merged files."""

    keys: tuple[str, ...]
    word: str


@dataclass(frozen=True)
class Arguments:
    """Parsed command line: choices for Hydra, and changes to its result, in order."""

    choices: tuple[str, ...]
    changes: tuple[Assignment | Removal, ...]


def read(words: Sequence[str], folders: Folders) -> Arguments:
    """Parse the arguments. Raises ConfigError naming the argument and what to write instead."""
    choices, changes = list[str](), list[Assignment | Removal]()
    for word in words:
        _refuse_no_text(word)
        if _is_choice(word, folders):
            choices.append(_choice(word, folders))
        elif word.startswith("~"):
            changes.append(Removal(_removed(word), word))
        else:
            changes.append(_assignment(word, words, folders))
    return Arguments(tuple(choices), tuple(changes))


def _refuse_no_text(word: str) -> None:
    """Refuse bytes that are not UTF-8: they cannot be written into the run's configuration."""
    try:
        word.encode()
    except UnicodeEncodeError as e:
        shown = word.encode(errors="backslashreplace").decode()
        raise ConfigError(f"{shown} is not UTF-8", hint="a name in UTF-8, or a link to it") from e


def _is_choice(word: str, folders: Folders) -> bool:
    key = word.lstrip("+~").partition("=")[0]
    group = key.partition("@")[0]
    return (
        key.startswith(HYDRAS) or folders.has_group(group) or group in field_lookup.section_names()
    )


def _choice(word: str, folders: Folders) -> str:
    key, is_, value = word.partition("=")
    group = key.lstrip("+~").partition("@")[0]
    unset = value == "null" and group not in field_lookup.section_names()
    if group.startswith(HYDRAS) or key.startswith("~") or unset or value.startswith("["):
        return word
    if not is_:
        known = ", ".join(folders.choices(group))
        hint = f"{group}=FILE; known: {known}" if known else ""
        raise ConfigError(f"{word} is a group of files, and no file is named", hint=hint)
    if group == "model" and folders.file(f"model/{value}") is None:
        known = ", ".join(folders.choices(group))
        hint = f"{quoted_override('model.path', value)} (files of conf/model: {known})"
        raise ConfigError(f"{word}: model takes the name of a file of conf/model", hint=hint)
    refuse_unknown_choice(folders, group, value)
    return word


def _removed(word: str) -> tuple[str, ...]:
    name, is_, _ = word[1:].partition("=")
    if is_:
        raise ConfigError(f"{word}: ~NAME takes no value", hint=shlex.quote(f"~{name}"))
    return field_lookup.field(name).keys


def _assignment(word: str, words: Sequence[str], folders: Folders) -> Assignment:
    name, is_, text = word.partition("=")
    if not is_:
        raise no_assignment(word)
    try:
        return Assignment(field_lookup.field(name.lstrip("+")), text)
    except ConfigError as e:
        meant = "" if "." in name else suggestion(name, text, "", roles(words, folders))
        raise (ConfigError(e.message, hint=meant) if meant else e) from None


def roles(words: Sequence[str], folders: Folders) -> tuple[Role, ...]:
    """Return the roles of the pools that these arguments run; those of the default topology if the
    arguments are wrong."""
    from hpc_dynamo.cli.overrides.hydra_files import composed

    try:
        files = composed(folders, [word for word in words if _is_choice(word, folders)])
        kinds = [str((files.get("topology") or {}).get("kind"))]
        kinds += [w.partition("=")[2] for w in words if w.startswith("topology.kind=")]
        kind = TopologyKind(kinds[-1])
    except (ConfigError, ValueError):
        kind = TopologyKind.disaggregated
    return tuple(role for role, _ in Topology(kind).pools)


def no_assignment(word: str) -> ConfigError:
    """Return the error for an argument without `=`, with the override that it probably meant."""
    what = f"{word} is neither an option nor FIELD=VALUE"
    if word.lower().endswith(INPUTS):
        return ConfigError(what, hint=quoted_override("input", word))
    if "/" in word or Path(word).is_dir():
        return ConfigError(what, hint=quoted_override("model.path", word))
    known = sorted({*field_lookup.section_names(), *field_lookup.fields_of(Config)})
    near = get_close_matches(word.partition(".")[0], known, n=1)
    example = f"did you mean {near[0]}? " if near else ""
    return ConfigError(what, hint=f"{example}such as input=prompts.jsonl model.path=/shared/llama")
