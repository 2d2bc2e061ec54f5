"""Engine in an Apptainer container: `apptainer exec …`.

Source: apptainer (action_flags.go, util/env/create.go).
"""

from dataclasses import replace

from hpc_dynamo.config import Config, Device
from hpc_dynamo.engines.adapter import EngineCommand, Placement
from hpc_dynamo.engines.containers.mounts import all_mounts


def in_apptainer(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    """Return the command inside the container. Names with a prefix reach its environment."""
    container = config.engine.container
    gpus = ["--nv"] if config.engine.device is Device.cuda else []
    binds = [f"--bind={mount}" for mount in all_mounts(config, placement)]
    # Without --no-eval a shell would expand `$` in the values of the environment.
    start = ["apptainer", "exec", "--cleanenv", "--no-eval", *gpus, *binds, *container.options]
    env = {f"APPTAINERENV_{name}": value for name, value in command.env.items()}
    return replace(command, argv=(*start, container.image, *command.argv), env=env)
