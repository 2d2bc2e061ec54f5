"""What several engines refuse, before anything is submitted."""

from hpc_dynamo.config import Config, KvLoadFailurePolicy
from hpc_dynamo.engines.contract import uses_kv_events
from hpc_dynamo.errors import ConfigError


def require_model(config: Config) -> None:
    """Raises ConfigError."""
    if not config.model.path:
        hint = "model.path=/path/to/model (a folder on a shared disk, or a hub id)"
        raise ConfigError("model.path is not set", hint=hint)


def refuse_recompute(name: str, config: Config) -> None:
    """Raises ConfigError where an engine is to do what only vLLM's decode workers can."""
    if config.engine.kv_load_failure_policy is KvLoadFailurePolicy.recompute:
        what = (
            f"engine.kv_load_failure_policy=recompute: {name} fails a request whose blocks are lost"
        )
        raise ConfigError(what, hint="engine.kv_load_failure_policy=fail; other workers are tried")


def check_block_size(config: Config, engine_tokens: int) -> None:
    """Whether the router can take in events on blocks of so many tokens. Raises ConfigError."""
    own = config.router.block_tokens
    if uses_kv_events(config) and engine_tokens % own:
        what = f"router.block_tokens={own} does not divide the engine's blocks of {engine_tokens}"
        raise ConfigError(what, hint=f"router.block_tokens={engine_tokens}")
