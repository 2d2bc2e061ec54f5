"""Names of LoRA adapters: what clients ask for must be one thing."""

from hpc_dynamo.config.schema import Config
from hpc_dynamo.errors import ConfigError, quoted_override


def check_adapters(config: Config) -> None:
    """Of a run of one model. Raises ConfigError."""
    for name, path in config.model.lora.items():
        if not path:
            hint = quoted_override(f"model.lora.{name}", f"/shared/adapters/{name}")
            raise ConfigError(f"model.lora.{name} has no folder", hint=hint)
        if name == config.served_name:
            what = f"model.lora.{name} has the name of the model itself"
            raise ConfigError(what, hint="another name for it, or model.name=…")


def check_apart(config: Config) -> None:
    """Of all models. Raises ConfigError."""
    whose = {name: name for name in config.models}
    for model, own in config.models.items():
        for name in own.lora:
            if name in whose:
                what = f"models.{model}.lora.{name}: models.{whose[name]} answers to that name"
                raise ConfigError(what, hint="a name of its own for each model and adapter")
            whose[name] = model
