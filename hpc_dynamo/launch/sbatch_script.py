"""Texts of sbatch scripts: those submitted for a run, and those for the user.

Both have the same directives. The first kind starts the agents of an existing run folder as a step.
The second kind runs the same verb inside the allocation, which starts its agents there. It can be
kept, edited and submitted with more overrides.
"""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

from hpc_dynamo.config import Cluster, Config
from hpc_dynamo.launch.resources import group_configs, sbatch_options
from hpc_dynamo.launch.srun import IGNORE_SIGNAL, GroupPlans, srun_command
from hpc_dynamo.process.child import SAFE_PATH
from hpc_dynamo.run import Attempt
from hpc_dynamo.run.privacy import PRIVATE_UMASK
from hpc_dynamo.topology import Plan

Options = Mapping[str, str | int | bool]

UMASK = f"umask {PRIVATE_UMASK:03o}"
HEADER = (
    "# This script belongs to one run folder. `hpc-dynamo plan --sbatch …` prints a reusable one."
)


def render_script(config: Config, plan: Plan, verb: str, overrides: Sequence[str]) -> str:
    """Return a script for the user. Arguments of `sbatch script …` become more overrides."""
    lines = [
        "#!/bin/bash",
        *directives(group_configs(config, plan), _logs_and_signal(config.cluster)),
        "",
    ]
    lines += ["# Slurm signals this shell before the end of the job, hence `exec` of the program."]
    lines += ["# The signal is ignored until the program handles it."]
    lines += ["# More overrides may follow the script's name on the command line of sbatch."]
    lines += [UMASK, IGNORE_SIGNAL, *config.cluster.slurm.setup]
    words = ["hpc-dynamo", verb, *overrides, "cluster.launcher=allocation"]
    command = " \\\n  ".join(map(shlex.quote, words))
    lines += [f'exec {command} \\\n  "$@"', ""]
    return "\n".join(lines)


def submission_script(attempt: Attempt, config: Config, plan: Plan) -> str:
    """Return the script submitted for an attempt on identical nodes: a step whose tasks load the
    pickles of submitit."""
    folder, logs = attempt.submitit, _logs(attempt)
    task = (sys.executable, "-u", "-m", "hpc_dynamo.launch.submitit_task", str(folder))
    options = [f"--{name}={value}" for name, value in _logs(attempt, "%t").items()]
    groups = ((config, plan),)
    srun = srun_command(groups, task, "--unbuffered", *options)
    commands = ["export SUBMITIT_EXECUTOR=slurm", shlex.join(srun), _exit_command(attempt)]
    return _attempt_script(groups, logs, commands)


def hetjob_script(attempt: Attempt, config: Config, plan: Plan, entry: str) -> str:
    """Return the script for an attempt on several node groups: one heterogeneous job."""
    task = (sys.executable, "-u", "-m", entry, str(attempt.path))
    groups = group_configs(config, plan)
    srun = srun_command(groups, task)
    logs = {"output": f"{_escaped(attempt)}/%j.log"}
    return _attempt_script(groups, logs, [shlex.join(srun), _exit_command(attempt)])


def _exit_command(attempt: Attempt) -> str:
    """Return the last command of a script: it ends the job with the exit code of the attempt."""
    argv = (sys.executable, "-m", "hpc_dynamo.launch.exit_code", str(attempt.path))
    return f'exec {shlex.join(argv)} "$?"'


def _attempt_script(groups: GroupPlans, logs: Mapping[str, str], commands: list[str]) -> str:
    slurm = groups[0][0].cluster.slurm
    signal = {"signal": f"USR2@{slurm.signal_before_end_s}"}  # to all tasks
    first = dict(logs) | {"open-mode": "append"} | signal
    lines = ["#!/bin/bash", *directives(groups, first, signal), "", HEADER]
    # Repeated here: a job submitted with --export=NONE inherits nothing.
    lines += [f"export {name}={value}" for name, value in SAFE_PATH.items()]
    lines += [UMASK]
    return "\n".join([*lines, *slurm.setup, *commands, ""])


def _logs(attempt: Attempt, task: str = "0") -> dict[str, str]:
    """Return the log files that submitit expects."""
    start = f"{_escaped(attempt)}/%j_{task}_log"
    return {"output": f"{start}.out", "error": f"{start}.err"}


def _escaped(attempt: Attempt) -> str:
    """Return the folder of logs with `%` escaped, since Slurm would replace `%j` in it."""
    return str(attempt.submitit).replace("%", "%%")


def directives(groups: GroupPlans, first: Options, others: Options | None = None) -> Iterator[str]:
    """Yield the #SBATCH lines; several node groups are components of a heterogeneous job.

    `first` are more options of the first component, in which the script runs, `others` of the rest.
    Options from the configuration override them.
    """
    for index, (config, plan) in enumerate(groups):
        if index:
            yield "#SBATCH hetjob"
        configured = sbatch_options(config, plan)
        # Configured options come first and also win over the additional ones.
        options = configured | dict((others or {}) if index else first) | configured
        yield from (_directive(name, value) for name, value in options.items())


def _logs_and_signal(cluster: Cluster) -> Options:
    signal = f"B:USR2@{cluster.slurm.signal_before_end_s}"
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
