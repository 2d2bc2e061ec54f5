"""Values of `models` that cannot work, and which model an error is about."""

from collections.abc import Iterator
from contextlib import contextmanager

from hpc_dynamo.config.planner import PlannerKind
from hpc_dynamo.config.schema import Config, Task
from hpc_dynamo.errors import ConfigError


@contextmanager
def about(model: str) -> Iterator[None]:
    """What is raised as a ConfigError is about one of several models; empty: about the one."""
    try:
        yield
    except ConfigError as e:
        if not model:
            raise
        raise ConfigError(f"models.{model}: {e.message}", hint=e.hint) from e


def check_models(config: Config) -> None:
    """Raises ConfigError, naming field, value and remedy."""
    if not config.models:
        return
    if config.task is not Task.serve:
        what = f"a {config.task} is of one model, and models.* names {', '.join(config.models)}"
        raise ConfigError(what, hint=f"hpc-dynamo {config.task} model.path=…, once for each")
    if config.route.engines:
        what = "models.* are served by workers that we start, and route.* names other engines"
        raise ConfigError(what, hint="hpc-dynamo serve …, or a route for each model")
    if config.planner.by is not PlannerKind.off:
        what = f"planner.by={config.planner.by} plans for one model, and models.* names several"
        raise ConfigError(what, hint="planner=off, or a run for each model")
    for name in config.models:
        _check_shared(name, config)


def _check_shared(name: str, config: Config) -> None:
    """What all models have in common, since they share the nodes."""
    own, first = config.models[name], next(iter(config.models))
    if own.topology.nodes != config.topology.nodes:
        what = f"models.{name}.topology.nodes={own.topology.nodes}: the nodes are all models'"
        raise ConfigError(what, hint=f"topology.nodes={own.topology.nodes}, for the whole job")
    if own.engine.device is not config.models[first].engine.device:
        what = f"models.{name} computes on {own.engine.device}, models.{first} does not"
        raise ConfigError(what, hint="one kind of device a job, or a job for each")
