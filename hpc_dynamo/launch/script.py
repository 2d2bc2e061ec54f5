"""sbatch scripts: those submitted for a run, and those that the user submits.

Both have the same directives. In the first a step starts the agents of a run folder that exists. In
the second the same verb runs inside the allocation and starts its agents there. Such a script can
be kept, edited and submitted with more overrides.
"""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

from hpc_dynamo.config import Config
from hpc_dynamo.launch import srun as step
from hpc_dynamo.launch.resources import group_configs, sbatch_options
from hpc_dynamo.process.child import SAFE_PATH
from hpc_dynamo.run import Attempt
from hpc_dynamo.topology import Plan

Options = Mapping[str, str | int | bool]
GroupPlans = Sequence[tuple[Config, Plan]]  # of identical nodes, see resources.components

HEADER = "# For a script of your own, which makes its run folder itself: hpc-dynamo plan --sbatch …"


def render_script(config: Config, plan: Plan, verb: str, overrides: Sequence[str]) -> str:
    """Return a script for the user. Arguments of `sbatch script …` become more overrides."""
    lines = ["#!/bin/bash", *directives(group_configs(config, plan), _logs_and_signal(config)), ""]
    lines += ["# The end of the job is announced to this shell, which must be the program itself:"]
    lines += ["# so `exec`. Further overrides may follow the script's name on sbatch's line."]
    lines += [*config.cluster.slurm.setup]
    words = ["hpc-dynamo", verb, *overrides, "cluster.launcher=allocation"]
    command = " \\\n  ".join(map(shlex.quote, words))
    lines += [f'exec {command} \\\n  "$@"', ""]
    return "\n".join(lines)


def submission_script(attempt: Attempt, config: Config, plan: Plan, mpi: str) -> str:
    """Return the script submitted for an attempt on identical nodes: a step whose tasks load the
    pickles of submitit."""
    folder, logs = attempt.submitit, _logs(attempt)
    task = (sys.executable, "-u", "-m", "submitit.core._submit", str(folder))
    options = [f"--{name}={value}" for name, value in _logs(attempt, "%t").items()]
    parts = ((config, plan),)
    srun = step.srun_command(parts, task, mpi, "--unbuffered", *options)
    return _attempt_script(parts, logs, ["export SUBMITIT_EXECUTOR=slurm", shlex.join(srun)])


def hetjob_script(attempt: Attempt, config: Config, plan: Plan, entry: str, mpi: str) -> str:
    """Return the script for an attempt on nodes of several kinds: one heterogeneous job."""
    task = (sys.executable, "-u", "-m", entry, str(attempt.path))
    parts = group_configs(config, plan)
    srun = step.srun_command(parts, task, mpi)
    logs = {"output": f"{_escaped(attempt)}/%j.log"}
    return _attempt_script(parts, logs, [shlex.join(srun)])


def _attempt_script(parts: GroupPlans, logs: Mapping[str, str], commands: list[str]) -> str:
    slurm = parts[0][0].cluster.slurm
    signal = {"signal": f"USR2@{slurm.signal_before_end_s}"}  # to all tasks
    first = dict(logs) | {"open-mode": "append"} | signal
    lines = ["#!/bin/bash", *directives(parts, first, signal), "", HEADER]
    # Repeated here: a job submitted with --export=NONE inherits nothing.
    lines += [f"export {name}={value}" for name, value in SAFE_PATH.items()]
    return "\n".join([*lines, *slurm.setup, *commands, ""])


def _logs(attempt: Attempt, task: str = "0") -> dict[str, str]:
    """Return the log files that submitit expects."""
    start = f"{_escaped(attempt)}/%j_{task}_log"
    return {"output": f"{start}.out", "error": f"{start}.err"}


def _escaped(attempt: Attempt) -> str:
    """Return the folder of logs with `%` escaped, since Slurm would replace `%j` in it."""
    return str(attempt.submitit).replace("%", "%%")


def directives(parts: GroupPlans, first: Options, others: Options | None = None) -> Iterator[str]:
    """Yield the #SBATCH lines; nodes of several kinds are components of a heterogeneous job.

    `first` are more options of the first component, in which the script runs, `others` of the rest.
    Options from the configuration come before them."""
    for index, (its, part) in enumerate(parts):
        if index:
            yield "#SBATCH hetjob"
        asked = sbatch_options(its, part)
        options = asked | dict((others or {}) if index else first) | asked
        yield from (_directive(name, value) for name, value in options.items())


def _logs_and_signal(config: Config) -> Options:
    signal = f"B:USR2@{config.cluster.slurm.signal_before_end_s}"
    return {"output": "%x-%j.log", "open-mode": "append", "signal": signal}


def _directive(name: str, value: str | int | bool) -> str:
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={quoted(str(value))}"


def quoted(text: str) -> str:
    """Quote the value of an option in a #SBATCH line.

    In single quotes sbatch still reads a backslash as an escape, unlike a shell. In double
    quotes they agree (get_argument in sbatch's opt.c).
    """
    if "\\" not in text:
        return shlex.quote(text)
    return '"' + re.sub(r'([\\"$`])', r"\\\1", text) + '"'
