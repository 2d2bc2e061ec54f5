"""Texts that become one line of a script, or a part of a file's name."""

import re
from collections.abc import Iterator
from dataclasses import fields

from hpc_dynamo.config.schema import Config
from hpc_dynamo.errors import ConfigError

CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\x85]")

# submitit and Slurm put numbers of the job in the place of these, in the paths of logs.
REPLACED = re.compile(r"%\d*[A-Za-z%]")


def check_lines(config: Config) -> None:
    """Refuse texts with a line break or another control character. Raises ConfigError."""
    for name, text in _texts(config):
        if CONTROL.search(text):
            what = f"{name}={text!r} has a control character, such as a line break"
            raise ConfigError(what, hint="a text of one line")


def _texts(config: Config) -> Iterator[tuple[str, str]]:
    yield "name", config.name
    yield "runs", config.runs
    sections = {f"cluster.hardware.{k}": kind for k, kind in config.cluster.hardware.items()}
    for section, values in {"cluster.slurm": config.cluster.slurm, **sections}.items():
        for field in fields(values):
            if isinstance(value := getattr(values, field.name), str):
                yield f"{section}.{field.name}", value
        for option, value in values.extra.items():
            yield f"{section}.extra.{option}", f"{option}={value}"


def check_folder(path: str) -> None:
    """Refuse a run's folder that could not be found again. Raises ConfigError."""
    if found := REPLACED.search(path):
        what = f"runs and name make the folder {path}, and Slurm replaces {found[0]} in paths"
        raise ConfigError(what, hint="runs=/a/path/without/percent/signs name=my-run")
