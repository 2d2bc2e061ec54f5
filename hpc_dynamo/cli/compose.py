"""Compose `conf/`, a folder of the user and overrides into one frozen configuration."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from hpc_dynamo.cli import model_overrides as models
from hpc_dynamo.cli.conf_folders import conf_folders
from hpc_dynamo.cli.overrides import arguments, files, tree
from hpc_dynamo.config import Config, Role, ServedModel, Task, Topology, errors_of_model


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """Return the configuration that these overrides ask for.

    `config_dir` adds files to the groups, or replaces built-in files of the same name. Raises
    ConfigError naming the field, the value and the known values.
    """
    folders = conf_folders(config_dir)
    own, of_models = models.split_overrides(overrides)
    config, in_files = _composed(own, folders, {})
    served = {
        name: _model(
            name, in_files.get(name, {}), of_models.get(name, []), own, folders, config.topology
        )
        for name in {**in_files, **of_models}
    }
    task = Task.serve if served else config.task  # all that several models are for
    return replace(config, models=served, task=task)


def roles(overrides: Sequence[str], config_dir: Path | None = None) -> tuple[Role, ...]:
    """Return the roles of the pools that these overrides run. Raises ConfigError for a folder that
    does not exist."""
    return arguments.roles(overrides, files.Folders(conf_folders(config_dir)))


def _model(
    name: str,
    in_files: object,
    its_words: list[str],
    own: list[str],
    folders: tuple[Path, ...],
    topology: Topology,
) -> ServedModel:
    """Return one of several models, as a run of only that model.

    `own` are the run's own arguments, `topology` is composed from them.
    """
    with errors_of_model(name):
        groups, values = models.from_file(name, in_files)
        its = models.merged_overrides(own, groups + its_words, topology.nodes)
        one, _ = _composed(its, folders, values)
    return ServedModel(one.model.path, one.engine, one.topology, one.router, one.model.lora)


def _composed(
    overrides: Sequence[str], folders: tuple[Path, ...], values: dict[str, Any]
) -> tuple[Config, dict[str, Any]]:
    """Return a run of one model, and the files' section `models`. `values` override files."""
    found = files.Folders(folders)
    built = tree.build(found, arguments.read(overrides, found), values)
    several = built.pop("models")
    return msgspec.convert(built, Config), several
