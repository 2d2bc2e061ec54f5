"""Engine in a Charliecloud container: `ch-run …`, which needs no privileges and no daemon.

ch-run passes its whole environment. So all variables are removed, apart from copies of those of the
command under a prefix; each variable gets its value from its copy. The command line contains only
names. It mounts the host's /dev, /proc, /sys and /tmp by itself.

Source: ch-run(1) of Charliecloud 0.31 and 0.38.
"""

from dataclasses import replace

from hpc_dynamo.config import Config
from hpc_dynamo.engines.adapter import EngineCommand, Placement
from hpc_dynamo.engines.containers.mounts import all_mounts

PREFIX = "HPC_DYNAMO_SET_"
# That of an image is in its file /ch/environment, which `--set-env` in the options reads.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def in_charliecloud(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    """Return the command inside the container.

    Its HOME is the worker's private folder: ch-run mounts no home, and images are read-only.
    """
    container, home = config.engine.container, placement.events_folder
    env = ({"HOME": home} if home else {}) | dict(command.env)
    binds = [f"--bind={mount}" for mount in all_mounts(config, placement)]
    clear = (f"--unset-env=!({PREFIX}*)", f"--set-env=PATH={DEFAULT_PATH}")
    values = [f"--set-env={name}=${PREFIX}{name}" for name in env]
    variables = (*clear, *container.options, *values, f"--unset-env={PREFIX}*")
    copies = {f"{PREFIX}{name}": value for name, value in env.items()}
    # ch-run mounts the host's TMPDIR as /tmp.
    argv = ("ch-run", *binds, *variables, container.image, "--", *command.argv)
    return replace(command, argv=argv, env={"TMPDIR": "/tmp"} | copies)
