"""Checks of `model` and `models`, and the context of an error about one of several models."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hpc_dynamo.config.schema.config import Config, ServedModel
from hpc_dynamo.config.schema.planner import PlannerMode
from hpc_dynamo.config.schema.workload import Task
from hpc_dynamo.errors import ConfigError, quoted_override

Models = Mapping[str, ServedModel]


@contextmanager
def errors_of_model(model: str) -> Iterator[None]:
    """Prefix the message of a ConfigError with one of several models. Empty: no prefix."""
    try:
        yield
    except ConfigError as e:
        if not model:
            raise
        raise ConfigError(f"models.{model}: {e.message}", hint=e.hint) from e


def require_single_model(models: Models, what: str) -> None:
    """Raise ConfigError for several models, which `what` does not support."""
    if models:
        named = ", ".join(models)
        hint = "model.path=… once for each of them; several are served together by hpc-dynamo serve"
        raise ConfigError(f"{what} is of one model, and models.* names {named}", hint=hint)


def check_models(config: Config) -> None:
    """Check the settings that several models of one job share."""
    if not config.models:
        return
    if config.task is not Task.serve:
        require_single_model(config.models, f"a {config.task}")
    if config.route.engines:
        what = "models.* cannot be combined with route.*, which names engines that already run"
        raise ConfigError(what, hint="hpc-dynamo serve …, or a route for each model")
    if config.planner.mode is not PlannerMode.off:
        require_single_model(config.models, f"planner.mode={config.planner.mode}")
    for name in config.models:
        _check_shared(name, config)


def _check_shared(name: str, config: Config) -> None:
    own, first = config.models[name], next(iter(config.models))
    if own.topology.nodes != config.topology.nodes:
        what = f"models.{name}.topology.nodes={own.topology.nodes}: all models share the nodes"
        raise ConfigError(what, hint=f"topology.nodes={own.topology.nodes}, for the whole job")
    if own.engine.device is not config.models[first].engine.device:
        what = f"models.{name} computes on {own.engine.device}, models.{first} does not"
        raise ConfigError(what, hint="one kind of device a job, or a job for each")


def check_adapters(config: Config) -> None:
    """Check the LoRA adapters of one model."""
    for name, path in config.model.lora.items():
        if not path:
            hint = quoted_override(f"model.lora.{name}", f"/shared/adapters/{name}")
            raise ConfigError(f"model.lora.{name} has no folder", hint=hint)
        if name == config.served_name:
            what = f"model.lora.{name} has the name of the model itself"
            raise ConfigError(what, hint="another name for it, or model.name=…")


def check_adapter_names(models: Models) -> None:
    """Check that models and LoRA adapters of one job have different names."""
    owners = {name: name for name in models}
    for model, own in models.items():
        for name in own.lora:
            if name in owners:
                what = f"models.{model}.lora.{name}: models.{owners[name]} answers to that name"
                raise ConfigError(what, hint="a name of its own for each model and adapter")
            owners[name] = model
