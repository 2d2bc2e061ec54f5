"""The engines by name. A new one is a file here and a row in the table."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from hpc_dynamo.config import Config, Role, Router, TopologyKind, errors_of_model
from hpc_dynamo.engines import container_args
from hpc_dynamo.engines.container_args import in_container
from hpc_dynamo.engines.contract import (
    Command,
    Engine,
    EventEndpoints,
    Placement,
    ShardRendezvous,
    SleepEndpoints,
)
from hpc_dynamo.engines.pd_protocol import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    RESPONSES,
    Body,
    ConcurrentProtocol,
    PdProtocol,
    SequentialProtocol,
    field_value,
    probe_fields,
)
from hpc_dynamo.engines.roles import differ, for_role, for_worker
from hpc_dynamo.engines.sglang import SglangAdapter
from hpc_dynamo.engines.sglang_pd_protocol import SglangPdProtocol
from hpc_dynamo.engines.sglang_prompts import PromptCheck, prompt_check
from hpc_dynamo.engines.simulator import PD_PROTOCOLS, SimulatorAdapter, simulated_protocol
from hpc_dynamo.engines.trtllm import TrtllmAdapter
from hpc_dynamo.engines.vllm import VllmAdapter
from hpc_dynamo.errors import ConfigError, unknown_name
from hpc_dynamo.topology import Plan, Worker

ENGINES: dict[str, type[Engine]] = {
    "sglang": SglangAdapter,
    "simulator": SimulatorAdapter,
    "trtllm": TrtllmAdapter,
    "vllm": VllmAdapter,
}


def engine(name: str) -> Engine:
    """The adapter called `name`. Raises ConfigError listing the known ones."""
    if name not in ENGINES:
        raise unknown_name("engine.name", name, ENGINES)
    return ENGINES[name]()


def check(config: Config, plan: Plan) -> None:
    """Refuse what the engines of the models cannot run, as each role's workers are started.

    Raises ConfigError.
    """
    for model, own in config.by_model.items():
        with errors_of_model(model):
            _check(own, plan.for_model(model))


def _check(config: Config, plan: Plan) -> None:
    adapter = engine(config.engine.name)
    if adapter.serves_both_roles(config) and differ(config):
        what = "a worker whose role changes while it runs has no options of one role: "
        what += "engine.prefill and engine.decode differ"
        hint = "planner.restart_on_role_change=true restarts its engine in its new role; "
        hint += "or planner=off"
        raise ConfigError(what, hint=hint)
    for worker in {worker.role: worker for worker in plan.workers}.values():
        with _about_role(worker.role, adapter, config, plan):
            adapter.check(for_role(config, worker.role), plan)


@contextmanager
def _about_role(role: Role, adapter: Engine, config: Config, plan: Plan) -> Iterator[None]:
    """What is raised as a ConfigError names the role, where its own options are the cause."""
    try:
        yield
    except ConfigError as e:
        if e.message == _check_error(adapter, config, plan):
            raise
        raise ConfigError(f"{e.message} (with engine.{role})", hint=e.hint) from e


def _check_error(adapter: Engine, config: Config, plan: Plan) -> str:
    try:
        adapter.check(config, plan)
    except ConfigError as e:
        return e.message
    return ""


def is_mpi_step(config: Config, worker: Worker) -> bool:
    """Whether its ranks are one MPI world, over all of its nodes."""
    view = for_worker(config, worker)
    return engine(view.engine.name).is_mpi_step(view, worker)


def pd_protocol_of(config: Config) -> PdProtocol:
    """What the engines of this configuration speak: the simulator may speak any."""
    if config.engine.name == "simulator":
        return simulated_protocol(config)
    return engine(config.engine.name).pd_protocol


def adapter_fields(config: Config, adapter: str) -> Body:
    """What a request for a LoRA adapter says in place of its own `model`; empty: the same."""
    if not isinstance(pd_protocol_of(config), SglangPdProtocol):
        return {}
    return {"model": f"{config.served_name}:{adapter}"}


def prompt_check_of(config: Config) -> PromptCheck | None:
    """Return the check for prompts that would end an engine; None if engines refuse them."""
    return prompt_check(config) if isinstance(pd_protocol_of(config), SglangPdProtocol) else None


def diagnose(config: Config, log_tail: str) -> str:
    """What to try, from the last lines of a dead engine's log; empty where unknown."""
    return container_args.diagnose(config, log_tail) or engine(config.engine.name).diagnose(
        log_tail
    )


def with_engine_limits(config: Config) -> Config:
    """With routers that ask of the engines what they can: of those that always share a request
    none computes a prompt alone."""
    models = {
        model: replace(served, router=_router_for(config.for_model(model)))
        for model, served in config.models.items()
    }
    own = config.router if models else _router_for(config)
    return replace(config, router=own, models=models)


def _router_for(config: Config) -> Router:
    shared = isinstance(pd_protocol_of(config), ConcurrentProtocol)
    if not (shared and config.topology.kind is TopologyKind.disaggregated):
        return config.router
    return replace(config.router, conditional_disaggregation=False)


__all__ = [
    "CHAT",
    "COMPLETIONS",
    "ENGINES",
    "MESSAGES",
    "PD_PROTOCOLS",
    "RESPONSES",
    "Body",
    "Command",
    "ConcurrentProtocol",
    "Engine",
    "EventEndpoints",
    "PdProtocol",
    "Placement",
    "SequentialProtocol",
    "ShardRendezvous",
    "SleepEndpoints",
    "adapter_fields",
    "check",
    "diagnose",
    "engine",
    "field_value",
    "for_role",
    "for_worker",
    "in_container",
    "is_mpi_step",
    "pd_protocol_of",
    "probe_fields",
    "prompt_check_of",
    "with_engine_limits",
]
