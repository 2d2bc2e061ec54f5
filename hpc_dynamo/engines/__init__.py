"""Inference engines: commands, prefill/decode protocols, checks and metrics. Pure.

A new engine is a folder here with an adapter, a row in ENGINES, and a file `conf/engine/NAME.yaml`.
Other packages call the functions below with a configuration, and do not name engines.

    vllm/ sglang/ trtllm/ simulator/   one engine each: adapter.py, flags.py, pd_protocol.py, …
    adapter.py                         EngineAdapter, the base class; Placement, Command
    pd_protocol.py                     how a prefill and a decode worker share a request
    options.py                         `engine.args`: reading them, command lines
    contract/                          names of all options, recorded from the engines
    option_check.py                    refuses options before submission
    environment.py event_options.py    variables of an engine process; KV event options
    shards.py                          workers over several nodes
    containers/                        commands inside containers, one file per runtime
    compat_checks.py                   what engines refuse before submission
    diagnostics.py root_cause.py       what a log says about a failed engine, and what to try
    answer_settings.py                 settings that the answers of a batch depend on
    http_paths.py                      paths of an engine that clients may use
    metrics.py                         the engines' /metrics in one vocabulary
    injected/                          modules that run inside the engine's process
"""

from collections.abc import Iterator
from contextlib import contextmanager

from hpc_dynamo.config import (
    Config,
    Engine,
    Policy,
    Role,
    errors_of_model,
    with_role_options,
    with_worker_options,
)
from hpc_dynamo.config.resolve import role_options_differ
from hpc_dynamo.engines import containers
from hpc_dynamo.engines.adapter import (
    EngineAdapter,
    EngineCommand,
    EventEndpoints,
    Placement,
    PromptCheck,
    RoleSwitch,
    ShardRendezvous,
    SleepEndpoints,
    roles_can_change,
)
from hpc_dynamo.engines.containers import in_container
from hpc_dynamo.engines.option_check import check_options
from hpc_dynamo.engines.pd_protocol import (
    CHAT,
    COMPLETIONS,
    MAX_IDS,
    MESSAGES,
    RESPONSES,
    Body,
    ConcurrentProtocol,
    PdProtocol,
    SequentialProtocol,
    field_value,
    probe_fields,
)
from hpc_dynamo.engines.sglang.adapter import SglangAdapter
from hpc_dynamo.engines.simulator.adapter import SimulatorAdapter
from hpc_dynamo.engines.trtllm.adapter import TrtllmAdapter
from hpc_dynamo.engines.vllm.adapter import VllmAdapter
from hpc_dynamo.errors import ConfigError, unknown_name
from hpc_dynamo.topology import Plan, Worker

ENGINES: dict[str, type[EngineAdapter]] = {
    "sglang": SglangAdapter,
    "simulator": SimulatorAdapter,
    "trtllm": TrtllmAdapter,
    "vllm": VllmAdapter,
}


def engine(name: str) -> EngineAdapter:
    """Return the adapter called `name`. Raises ConfigError that lists the known ones."""
    if name not in ENGINES:
        raise unknown_name("engine.name", name, ENGINES)
    return ENGINES[name]()


def adapter_of(engine_config: Engine) -> EngineAdapter:
    """Return the adapter of a run of one model."""
    return engine(engine_config.name)


def check(config: Config, plan: Plan) -> None:
    """Raise ConfigError for what the engines of any model cannot run, with each role's options."""
    for model, own in config.by_model.items():
        with errors_of_model(model):
            _check_model(own, plan.for_model(model))


def _check_model(config: Config, plan: Plan) -> None:
    adapter = adapter_of(config.engine)
    if adapter.serves_both_roles(config) and role_options_differ(config):
        what = "engine.prefill and engine.decode differ, but workers change their role while they "
        what += "run and so cannot have options of one role"
        hint = "planner.restart_on_role_change=true restarts the engine in its new role; "
        hint += "or planner=off"
        raise ConfigError(what, hint=hint)
    for worker in {worker.role: worker for worker in plan.workers}.values():
        with _naming_role(worker.role, adapter, config, plan):
            adapter.check(with_role_options(config, worker.role), plan)
    check_options(config, adapter)


@contextmanager
def _naming_role(role: Role, adapter: EngineAdapter, config: Config, plan: Plan) -> Iterator[None]:
    """Add the role to a ConfigError that only the options of this role cause."""
    try:
        yield
    except ConfigError as e:
        if e.message == _check_error(adapter, config, plan):
            raise
        what, hint = (_with_role(text, role, config) for text in (e.message, e.hint))
        raise ConfigError(f"{what} (with engine.{role})", hint=hint) from e


def _with_role(text: str, role: Role, config: Config) -> str:
    """Return a text about engine options that names those of a role by their own fields."""
    for name in config.engine.role_options(role).args:
        text = text.replace(f"engine.args.{name}", f"engine.{role}.args.{name}")
    return text


def _check_error(adapter: EngineAdapter, config: Config, plan: Plan) -> str:
    try:
        adapter.check(config, plan)
    except ConfigError as e:
        return e.message
    return ""


def is_mpi_step(config: Config, worker: Worker) -> bool:
    """Return True if the worker's ranks are one MPI world over several nodes."""
    view = with_worker_options(config, worker.model, worker.role)
    return adapter_of(view.engine).is_mpi_step(view.engine, worker)


def pd_protocol_of(engine_config: Engine) -> PdProtocol:
    """Return the prefill/decode protocol of these engines."""
    return adapter_of(engine_config).pd_protocol(engine_config)


def disaggregated_media_of(engine_config: Engine) -> frozenset[str]:
    """Return the kinds of media with which two of these workers can share a request."""
    return adapter_of(engine_config).disaggregated_media(engine_config)


def adapter_fields(config: Config, adapter: str) -> Body:
    """Return the fields of a request for a LoRA adapter that replace those of the client."""
    return adapter_of(config.engine).adapter_fields(config, adapter)


def prompt_check_of(config: Config) -> PromptCheck | None:
    """Return the check for prompts that would end an engine; None if engines refuse them."""
    return adapter_of(config.engine).prompt_check(config)


def truncates_prompts(engine_config: Engine) -> bool:
    """Return True if engines shorten requests that are too long, and do not refuse them."""
    return adapter_of(engine_config).truncates_prompts(engine_config)


def rank_notes(config: Config) -> Iterator[str]:
    """Yield a sentence for each role whose engines select the data-parallel rank themselves,
    although the router counts cached prefixes."""
    for model, own in config.by_model.items():
        prefix = f"models.{model}.topology" if model else "topology"
        for role, pool in own.topology.pools if own.router.policy is Policy.kv else ():
            view = with_role_options(own, role).engine
            caches = adapter_of(view).prefix_caches(view, role, pool.parallel)
            if not caches.steered and caches.count > 1:
                what = f"{prefix}.{role}: {view.name} itself selects one of {caches.count} data-"
                what += "parallel ranks for a request, each with its own prefix cache; the router "
                yield f"{what}counts 1/{caches.count} of a cached prefix"


def diagnose(engine_config: Engine, log_tail: str) -> str:
    """Return what to try, from the last lines of a failed engine's log; empty if unknown."""
    return containers.diagnose(engine_config, log_tail) or adapter_of(engine_config).diagnose(
        log_tail
    )


def is_concurrent(engine_config: Engine) -> bool:
    """Return True if the engines of one model start prefill and decode of a request together."""
    return isinstance(pd_protocol_of(engine_config), ConcurrentProtocol)


__all__ = [
    "CHAT",
    "COMPLETIONS",
    "ENGINES",
    "MAX_IDS",
    "MESSAGES",
    "RESPONSES",
    "Body",
    "ConcurrentProtocol",
    "EngineAdapter",
    "EngineCommand",
    "EventEndpoints",
    "PdProtocol",
    "Placement",
    "PromptCheck",
    "RoleSwitch",
    "SequentialProtocol",
    "ShardRendezvous",
    "SleepEndpoints",
    "adapter_fields",
    "check",
    "diagnose",
    "disaggregated_media_of",
    "engine",
    "field_value",
    "in_container",
    "is_concurrent",
    "is_mpi_step",
    "pd_protocol_of",
    "probe_fields",
    "prompt_check_of",
    "rank_notes",
    "roles_can_change",
    "truncates_prompts",
]
