"""Configuration of each verb that starts a job: its task, run name and absolute paths."""

import re
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Config, Planner, PlannerMode, Serve, Task
from hpc_dynamo.config.resolve import with_engine_limits, with_run
from hpc_dynamo.engines import is_concurrent
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.planner.interpolation import load_performance
from hpc_dynamo.regular_file import read_key


def composed(args: Namespace) -> Config:
    """Return the configuration of a verb that starts engines. Raises ConfigError."""
    config = compose(args.overrides, args.config_dir)
    if not args.no_preflight:
        return config
    return replace(config, cluster=replace(config.cluster, preflight=False))


def resolve_batch(config: Config) -> Config:
    """Return the configuration that `batch` runs with. Raises ConfigError."""
    if not config.input:
        raise ConfigError("input is not set", hint="input=prompts.jsonl, one request per line")
    source = Path(config.input).absolute()
    return resolve_run(replace(config, task=Task.batch, input=str(source)), source.stem)


def resolve_serve(config: Config) -> Config:
    """Return the configuration that `serve` runs with. Raises ConfigError."""
    config = replace(config, task=Task.serve, serve=with_absolute_files(config.serve))
    return resolve_run(config, f"serve-{_model_names(config)}")


def resolve_profile(config: Config) -> Config:
    """Return the configuration that `profile` runs with. Raises ConfigError."""
    name = f"profile-{config.engine.name}-{_model_names(config)}"
    return resolve_run(replace(config, task=Task.profile), name)


def resolve_run(config: Config, default_name: str) -> Config:
    """Return the configuration with a run name, absolute paths and what the engine requires.

    Raises ConfigError for a name that cannot be a folder, and for an unusable profile.
    """
    runs_dir = str(Path(config.runs_dir).absolute())
    config = with_run(config, config.name or default_name, runs_dir, _profile(config.planner))
    return with_engine_limits(config, is_concurrent)


def _profile(planner: Planner) -> str:
    """Return the absolute path of the profile. Raises ConfigError if the planner needs another."""
    if planner.mode is not PlannerMode.sla:
        return planner.profile
    if not planner.profile:
        hint = "planner.profile=FILE, which `hpc-dynamo profile` writes; or planner=load"
        raise ConfigError("planner.mode=sla needs a profile of the engine", hint=hint)
    load_performance(planner.profile)
    return str(Path(planner.profile).absolute())


def _model_names(config: Config) -> str:
    """Return the name of the model, or of all models, as a part of a folder name."""
    names = "+".join(config.models) or config.model.served_name
    return re.sub(r"[^\w.+-]+", "-", names)


def with_absolute_files(serve: Serve) -> Serve:
    """Return the section with absolute paths. Raises ConfigError for a file that is missing."""
    key = key_file("serve.api_key_file", serve.api_key_file)
    cert = _file("serve.tls_cert", serve.tls_cert)
    return replace(
        serve, api_key_file=key, tls_cert=cert, tls_key=_file("serve.tls_key", serve.tls_key)
    )


def key_file(field: str, value: str) -> str:
    """Return the absolute path of a file with a key. Raises ConfigError if there is no key."""
    key = _file(field, value)
    hint = f"openssl rand -hex 32 > {key}, or leave {field} out"
    try:
        if key and not read_key(key):
            raise ConfigError(f"{field}={key} is empty", hint=hint)
    except (UnicodeDecodeError, OSError) as e:
        if isinstance(e, PermissionError):
            raise  # `main` reports it with the owner and what to ask for
        raise ConfigError(f"{field}={key} is no file with a key: {e}", hint=hint) from e
    return key


def _file(field: str, value: str) -> str:
    if value and not Path(value).is_file():
        raise ConfigError(f"{field}={value}: no such file", hint="a file on a shared disk")
    return str(Path(value).absolute()) if value else ""
