"""Configuration of one worker: that of its model, with the options of its role merged.

Adapters read only `engine.args` and `engine.env`. Callers of an adapter pass this configuration.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines.options import parse_json
from hpc_dynamo.topology import Worker


def for_worker(config: Config, worker: Worker) -> Config:
    """Return its model's configuration with the role's options in `engine.args` and
    `engine.env`."""
    return for_role(config.for_model(worker.model), worker.role)


def for_role(config: Config, role: Role) -> Config:
    """Return the configuration of a role's workers in a run of one model. Idempotent."""
    engine, own = config.engine, config.engine.role_options(role)
    args = merged(engine.args, _spelled_like(engine.args, own.args))
    return replace(config, engine=replace(engine, args=args, env={**engine.env, **own.env}))


def differ(config: Config) -> bool:
    """Return True if prefill and decode workers are started with different options."""
    prefill, decode = (for_role(config, role).engine for role in (Role.prefill, Role.decode))
    return prefill.env != decode.env or _named(prefill.args) != _named(decode.args)


def merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings, also nested ones and JSON objects; values of `override` win."""
    pairs = {
        key: (parse_json(base[key]), parse_json(override[key]))
        for key in base.keys() & override.keys()
    }
    both = {
        key: merged(mine, other)
        for key, (mine, other) in pairs.items()
        if isinstance(mine, Mapping) and isinstance(other, Mapping)
    }
    return {**base, **override, **both}


def _spelled_like(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return `override` with the spelling (dashes or underscores) of the same names in `base`."""
    names = {_plain(name): name for name in base}
    return {names.get(_plain(name), name): value for name, value in override.items()}


def _named(args: Mapping[str, Any]) -> dict[str, Any]:
    return {_plain(name): value for name, value in args.items()}


def _plain(name: str) -> str:
    return name.replace("_", "-")
