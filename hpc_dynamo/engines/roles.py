"""The configuration as one worker's engine sees it: its model's, with what its role gets on top of
all roles'.

Adapters know `engine.args` and `engine.env` alone. Whoever asks one for a worker's command, events
or blocks passes it this view.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hpc_dynamo.config import Config, Role
from hpc_dynamo.engines.options import parse_json
from hpc_dynamo.topology import Worker


def for_worker(config: Config, worker: Worker) -> Config:
    """Of its model, with the options of its role merged into `engine.args` and `engine.env`."""
    return for_role(config.for_model(worker.model), worker.role)


def for_role(config: Config, role: Role) -> Config:
    """For any worker of a role in a run of one model. A view of a view is the same view."""
    engine, own = config.engine, config.engine.role_options(role)
    args = merged(engine.args, _spelled_like(engine.args, own.args))
    return replace(config, engine=replace(engine, args=args, env={**engine.env, **own.env}))


def differ(config: Config) -> bool:
    """Whether prefill and decode workers are started with different options."""
    prefill, decode = (for_role(config, role).engine for role in (Role.prefill, Role.decode))
    return prefill.env != decode.env or _named(prefill.args) != _named(decode.args)


def merged(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """`theirs` win, key by key also inside of mappings, and of texts that are objects in JSON."""
    pairs = {
        key: (parse_json(ours[key]), parse_json(theirs[key])) for key in ours.keys() & theirs.keys()
    }
    both = {
        key: merged(mine, other)
        for key, (mine, other) in pairs.items()
        if isinstance(mine, Mapping) and isinstance(other, Mapping)
    }
    return {**ours, **theirs, **both}


def _spelled_like(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """An option may be written with dashes or underscores: `theirs` by the names in `ours`."""
    names = {_plain(name): name for name in ours}
    return {names.get(_plain(name), name): value for name, value in theirs.items()}


def _named(args: Mapping[str, Any]) -> dict[str, Any]:
    return {_plain(name): value for name, value in args.items()}


def _plain(name: str) -> str:
    return name.replace("_", "-")
