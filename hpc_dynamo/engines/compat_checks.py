"""Checks that several engines share. They run before anything is submitted."""

from hpc_dynamo.config import Config, Engine, KvLoadFailurePolicy, Model, Router, Task, TopologyKind
from hpc_dynamo.engines.event_options import uses_kv_events
from hpc_dynamo.errors import ConfigError


def require_model(model: Model) -> None:
    """Raise ConfigError if `model.path` is not set."""
    if not model.path:
        hint = "model.path=/path/to/model (a folder on a shared disk, or a hub id)"
        raise ConfigError("model.path is not set", hint=hint)


def refuse_recompute(name: str, engine: Engine) -> None:
    """Raise ConfigError if an engine is asked to recompute lost KV blocks; only vLLM can do
    this."""
    if engine.kv_load_failure_policy is KvLoadFailurePolicy.recompute:
        what = "engine.kv_load_failure_policy=recompute: "
        what += f"{name} fails a request whose KV blocks are lost"
        hint = "engine.kv_load_failure_policy=fail; the request is retried on other workers"
        raise ConfigError(what, hint=hint)


def refuse_disaggregated_profile(name: str, config: Config) -> None:
    """Raise ConfigError for a profile of workers that cannot serve a request without a partner."""
    if config.task is Task.profile and config.topology.kind is TopologyKind.disaggregated:
        what = f"profile measures each worker by itself, which {name}'s prefill/decode protocol "
        raise ConfigError(f"{what}does not allow", hint="topology=aggregated")


def refuse_host_cache(name: str, engine: Engine) -> None:
    """Raise ConfigError if a host cache is wanted of workers that cannot have one."""
    if engine.kv_host_cache_gb:
        what = f"engine.kv_host_cache_gb={engine.kv_host_cache_gb}: {name} has no host cache"
        raise ConfigError(what, hint="engine.kv_host_cache_gb=0")


def check_block_size(router: Router, engine_tokens: int) -> None:
    """Raise ConfigError if the router cannot read events for blocks of `engine_tokens` tokens."""
    own = router.block_tokens
    if uses_kv_events(router) and engine_tokens % own:
        what = f"router.block_tokens={own} does not divide the engine's blocks of {engine_tokens}"
        raise ConfigError(what, hint=f"router.block_tokens={engine_tokens}")
