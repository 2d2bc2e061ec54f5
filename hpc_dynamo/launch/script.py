"""An sbatch script that a person can read, change and submit.

It asks for the same resources as a submission by `hpc-dynamo` itself; inside, the same verb
finds itself in an allocation and starts its agents there.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from hpc_dynamo.config import Config
from hpc_dynamo.launch.resources import components, sbatch_options
from hpc_dynamo.topology import Plan


def render(config: Config, plan: Plan, verb: str, overrides: Sequence[str]) -> str:
    """The text of the script. Arguments of `sbatch script …` become further overrides."""
    lines = ["#!/bin/bash", *directives(config, plan, _logs_and_signal(config)), ""]
    lines += ["# The end of the job is announced to this shell, which must be the program itself:"]
    lines += ["# so `exec`. Further overrides may follow the script's name on sbatch's line."]
    lines += [*config.cluster.slurm.setup]
    words = ["hpc-dynamo", verb, *overrides, "cluster.launcher=allocation"]
    command = " \\\n  ".join(map(shlex.quote, words))
    lines += [f'exec {command} \\\n  "$@"', ""]
    return "\n".join(lines)


Options = Mapping[str, str | int | bool]


def directives(
    config: Config, plan: Plan, first: Options, others: Options | None = None
) -> Iterator[str]:
    """The #SBATCH lines; nodes of several kinds are components of a heterogeneous job. `first` are
    further options of the first component, in which the script runs, `others` of the rest."""
    for index, (its, part) in enumerate(components(config, plan)):
        if index:
            yield "#SBATCH hetjob"
        options = sbatch_options(its, part) | dict((others or {}) if index else first)
        yield from (_directive(name, value) for name, value in options.items())


def _logs_and_signal(config: Config) -> Options:
    signal = f"B:USR2@{config.cluster.slurm.signal_before_end_s}"
    return {"output": "%x-%j.log", "open-mode": "append", "signal": signal}


def _directive(name: str, value: str | int | bool) -> str:
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={quoted(str(value))}"


def quoted(text: str) -> str:
    """The value of an option in a #SBATCH line.

    In single quotes sbatch still takes a backslash as an escape, which a shell does not. In double
    quotes they agree (get_argument in sbatch's opt.c).
    """
    if "\\" not in text:
        return shlex.quote(text)
    return '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'
