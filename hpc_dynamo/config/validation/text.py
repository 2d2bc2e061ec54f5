"""Checks of texts that become one line of a script, or a part of a path."""

import os
import re
from collections.abc import Iterator
from dataclasses import fields

from hpc_dynamo.config.schema.cluster import Hardware, Slurm
from hpc_dynamo.config.schema.config import Config
from hpc_dynamo.errors import ConfigError, quoted_override

CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\x85]")

# A file system allows 255 bytes; `overwrite=true` appends .old-1 and Slurm's job name a prefix.
MAX_NAME_BYTES = 200

# submitit and Slurm replace these by numbers of the job in the paths of logs.
REPLACED = re.compile(r"%\d*[A-Za-z%]")


def check_single_lines(config: Config) -> None:
    """Refuse texts with a line break or another control character."""
    for name, text in _texts(config):
        if CONTROL.search(text):
            what = f"{name}={text!r} has a control character, such as a line break"
            raise ConfigError(what, hint="a text of one line")


def _texts(config: Config) -> Iterator[tuple[str, str]]:
    yield "name", config.name
    yield "runs_dir", config.runs_dir
    sections: dict[str, Slurm | Hardware] = {"cluster.slurm": config.cluster.slurm}
    sections |= {f"cluster.hardware.{k}": kind for k, kind in config.cluster.hardware.items()}
    for section, values in sections.items():
        for field in fields(values):
            if isinstance(value := getattr(values, field.name), str):
                yield f"{section}.{field.name}", value
        for option, value in values.extra.items():
            yield f"{section}.extra.{option}", f"{option}={value}"


def check_folder(runs_dir: str, name: str) -> None:
    """Refuse a run name that is no plain folder name, and a run folder whose name Slurm would
    change in log paths."""
    if "/" in name or name.startswith((".", "-")):
        raise ConfigError(f"name={name!r} must be a plain folder name", hint="name=my-run")
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        what = f"name={name!r} is too long: {len(os.fsencode(name))} bytes"
        raise ConfigError(what, hint=f"name=NAME with at most {MAX_NAME_BYTES} bytes")
    for field, value, hint in (
        ("runs_dir", runs_dir, "runs_dir=DIR, a folder without percent signs in its path"),
        ("name", name, quoted_override("name", name.replace("%", "") or "my-run")),
    ):
        if found := REPLACED.search(value):
            what = f"{field}={value}: Slurm replaces {found[0]} in the paths of logs"
            raise ConfigError(what, hint=hint)
