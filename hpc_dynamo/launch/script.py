"""An sbatch script that a person can read, change and submit.

It asks for the same resources as a submission by `hpc-dynamo` itself; inside, the same verb
finds itself in an allocation and starts its agents there.
"""

import shlex
from collections.abc import Sequence

from hpc_dynamo.config import Config
from hpc_dynamo.launch.resources import sbatch_options
from hpc_dynamo.topology import Plan


def render(config: Config, plan: Plan, verb: str, overrides: Sequence[str]) -> str:
    """The text of the script. Arguments of `sbatch script …` become further overrides."""
    options = sbatch_options(config, plan) | _logs_and_signal(config)
    lines = ["#!/bin/bash", *(_directive(name, value) for name, value in options.items()), ""]
    lines += ["# The end of the job is announced to this shell, which must be the program itself:"]
    lines += ["# so `exec`. Further overrides may follow the script's name on sbatch's line."]
    lines += [*config.cluster.slurm.setup]
    words = ["hpc-dynamo", verb, *overrides, "cluster.launcher=allocation"]
    command = " \\\n  ".join(map(shlex.quote, words))
    lines += [f'exec {command} \\\n  "$@"', ""]
    return "\n".join(lines)


def _logs_and_signal(config: Config) -> dict[str, str | int | bool]:
    signal = f"B:USR2@{config.cluster.slurm.signal_before_end_s}"
    return {"output": "%x-%j.log", "open-mode": "append", "signal": signal}


def _directive(name: str, value: str | int | bool) -> str:
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
