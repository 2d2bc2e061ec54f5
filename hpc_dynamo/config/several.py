"""Values of `models` that cannot work, and which model an error is about."""

from collections.abc import Iterator
from contextlib import contextmanager

from hpc_dynamo.config.planner import PlannerMode
from hpc_dynamo.config.schema import Config, Task
from hpc_dynamo.errors import ConfigError


@contextmanager
def errors_of_model(model: str) -> Iterator[None]:
    """What is raised as a ConfigError is about one of several models; empty: about the one."""
    try:
        yield
    except ConfigError as e:
        if not model:
            raise
        raise ConfigError(f"models.{model}: {e.message}", hint=e.hint) from e


def require_single_model(config: Config, what: str) -> None:
    """Raises ConfigError where `what` is of one model, and there are several."""
    if config.models:
        named = ", ".join(config.models)
        hint = "model.path=… once for each of them; several are served together by hpc-dynamo serve"
        raise ConfigError(f"{what} is of one model, and models.* names {named}", hint=hint)


def check_models(config: Config) -> None:
    """Raises ConfigError, naming field, value and remedy."""
    if not config.models:
        return
    if config.task is not Task.serve:
        require_single_model(config, f"a {config.task}")
    if config.route.engines:
        what = "models.* are served by workers that we start, and route.* names other engines"
        raise ConfigError(what, hint="hpc-dynamo serve …, or a route for each model")
    if config.planner.mode is not PlannerMode.off:
        require_single_model(config, f"planner.mode={config.planner.mode}")
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
