"""Engine commands inside a container: a program that starts it, or options of srun for Pyxis.

The agent stays outside, where Slurm's commands are, and starts the container in place of the
engine. The container gets only the environment variables of the command, never through a command
line, since they contain the run's token. All containers share the host's network and process ids,
so ports and signals work as without them.
"""

from collections.abc import Callable
from dataclasses import replace

from hpc_dynamo.config import Config, ContainerKind, Engine
from hpc_dynamo.engines.adapter import EngineCommand, Placement
from hpc_dynamo.engines.containers.apptainer import in_apptainer
from hpc_dynamo.engines.containers.charliecloud import in_charliecloud
from hpc_dynamo.engines.containers.enroot import in_enroot, in_pyxis
from hpc_dynamo.engines.containers.failures import KNOWN_FAILURES
from hpc_dynamo.engines.containers.podman import in_podman
from hpc_dynamo.engines.diagnostics import find_hint
from hpc_dynamo.process.child import SAFE_PATH

_INSIDE: dict[ContainerKind, Callable[[Config, Placement, EngineCommand], EngineCommand]] = {
    ContainerKind.apptainer: in_apptainer,
    ContainerKind.charliecloud: in_charliecloud,
    ContainerKind.enroot: in_enroot,
    ContainerKind.podman: in_podman,
    ContainerKind.pyxis: in_pyxis,
}


def in_container(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    """Return the command inside the configured container; unchanged without one."""
    kind = config.engine.container.kind
    if kind is ContainerKind.none:
        return command
    # The host's own variable stays outside.
    command = replace(command, env=SAFE_PATH | dict(command.env))
    return _INSIDE[kind](config, placement, command)


def diagnose(engine: Engine, log_tail: str) -> str:
    """Return what to try if the container failed; empty if unknown or without a container."""
    if engine.container.kind is ContainerKind.none:
        return ""
    return find_hint(KNOWN_FAILURES, log_tail)
