"""`cluster.slurm.extra`: any other option of sbatch, NAME: VALUE.

Options that the layout of the run depends on are refused; the error names the field to set. Any
other option replaces the generated one, so that a script never sets one thing twice.
"""

from collections.abc import Mapping

from hpc_dynamo.config.cluster import Slurm
from hpc_dynamo.errors import ConfigError

Options = dict[str, str | int | bool]

GPU_OPTIONS = ("gpus-per-node", "gres", "gpus", "gpus-per-task", "none")
REQUESTS = ("gpus-per-node", "gpus", "gpus-per-task", "gpus-per-socket")  # these only request GPUs
MEMORY_OPTIONS = ("mem", "mem-per-cpu", "none")
ON, OFF = ("", "true"), ("false", "null")  # yes and no are values of --kill-on-invalid-dep

LETTERS = {  # sbatch(1); in a #SBATCH line they would need one dash
    "A": "account",
    "a": "array",
    "b": "begin",
    "C": "constraint",
    "c": "cpus-per-task",
    "D": "chdir",
    "d": "dependency",
    "e": "error",
    "G": "gpus",
    "H": "hold",
    "J": "job-name",
    "L": "licenses",
    "M": "clusters",
    "m": "distribution",
    "N": "nodes",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "S": "core-spec",
    "s": "oversubscribe",
    "t": "time",
    "w": "nodelist",
    "W": "wait",
    "x": "exclude",
}
ONE_TASK = "leave it out: each node runs one task, which starts the node's engines"
FIELDS = {  # fields to set instead
    "job-name": "name=NAME",
    "nodes": "topology.nodes=N",
    "ntasks": ONE_TASK,
    "ntasks-per-node": ONE_TASK,
    "ntasks-per-gpu": ONE_TASK,
    "ntasks-per-socket": ONE_TASK,
    "ntasks-per-core": ONE_TASK,
    "cpus-per-task": "cluster.cpus_per_node=N",
    "cpus-per-gpu": "cluster.cpus_per_node=N",
    "time": "cluster.slurm.time=HH:MM:SS",
    "signal": "cluster.slurm.signal_before_end_s=SECONDS",
    "array": "one run a job: a loop over `hpc-dynamo batch input=FILE name=NAME --detach`, or an "
    "array of your own whose script runs `hpc-dynamo batch input=part-$SLURM_ARRAY_TASK_ID.jsonl`",
    "wrap": "cluster.slurm.setup=[COMMAND], which runs before the agents",
    "wait": "leave it out: the command follows the job, unless it is given --detach",
    "parsable": "leave it out: runs/NAME/attempts/1/job.json has the job's number",
    "test-only": "hpc-dynamo plan, which compares the layout with the partition",
}


GPUS = "cluster.gpus_per_node=4 cluster.slurm.gpu_type=a100 cluster.slurm.gpu_option=gres"
MEMORY = "cluster.memory_gb_per_node=N; cluster.slurm.memory_option=mem-per-cpu or none"
OTHERS = (
    *("mail-type", "mail-user", "comment", "wckey", "requeue", "no-requeue", "contiguous"),
    *("switches", "network", "tmp", "nice", "priority", "deadline", "prefer", "export"),
    *("cpu-freq", "gpu-freq", "gpu-bind", "mem-bind", "gres-flags", "threads-per-core", "hint"),
)
# Options that sbatch takes only with a value (slurm_opt.c, Slurm 22.05 to 25.05); of other names an
# empty one is a flag.
WITH_VALUE = {
    *REQUESTS,
    *("account", "acctg-freq", "batch", "bb", "bbf", "begin", "chdir", "cluster-constraint"),
    *("clusters", "comment", "constraint", "container", "container-id", "core-spec"),
    *("cores-per-socket", "cpu-freq", "deadline", "delay-boot", "dependency", "distribution"),
    *("error", "exclude", "export", "export-file", "extra", "extra-node-info", "gid", "gpu-bind"),
    *("gpu-freq", "gres", "gres-flags", "hint", "input", "kill-on-invalid-dep", "licenses"),
    *("mail-type", "mail-user", "mcs-label", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu"),
    *("mincpus", "network", "nodefile", "nodelist", "open-mode", "output", "partition", "power"),
    *("prefer", "priority", "profile", "qos", "reservation", "segment", "sockets-per-node"),
    *("switches", "thread-spec", "threads-per-core", "time-min", "tmp", "tres-bind"),
    *("tres-per-task", "uid", "umask", "wait-all-nodes", "wckey"),
}


def elsewhere(name: str) -> str:
    """Return the field or option to set instead of an sbatch option that was used as a field of
    `cluster.slurm`; empty if sbatch has no such option."""
    option = option_name(name)
    if option in (*REQUESTS, "gres"):
        return GPUS
    if option in ("mem", "mem-per-cpu", "mem-per-gpu"):
        return MEMORY
    if option in (*OTHERS, *LETTERS.values()) and option not in FIELDS:
        return f"cluster.slurm.extra.{option}=VALUE, as for any option of sbatch"
    return FIELDS.get(option, "")


def elsewhere_in_file(name: str, value: str) -> str:
    """Return what to do about an sbatch option that a file has outside of `extra:`; empty if sbatch
    has no such option. `value` is empty for a flag."""
    option, place = option_name(name), elsewhere(name)
    if place.startswith("cluster.slurm.extra."):
        return f"move it under `extra:` in that file: `extra: {{{option}: {value or 'true'}}}`"
    if not place or place.startswith("leave it out"):
        return place
    return f"remove it from that file, and: {place}"


def gpu_request(text: str) -> str:
    """Return the overrides for `a100:4` or `gpu:a100:4` instead of a number; empty for others."""
    *before, count = text.removeprefix("gpu:").split(":")
    if len(before) > 1 or not count.isdigit() or ":" not in text:
        return ""
    typed = f" cluster.slurm.gpu_type={before[0]}" if before else ""
    return f"cluster.gpus_per_node={count}{typed}"


def extra_options(slurm: Slurm) -> Options:
    """Return the options of `extra` by their long names; True is a flag, False removes a line."""
    return {option_name(name): _value(value) for name, value in slurm.extra.items()}


def option_name(name: str) -> str:
    """Return the long name of an option, also if written `--no-requeue`, `no_requeue` or `p`."""
    bare = name.lstrip("-").replace("_", "-")
    return LETTERS.get(bare, bare)


def _value(text: str) -> str | bool:
    word = text.strip().lower()
    if word in ON:
        return True
    return False if word in OFF else text


def asks_for_gpus(options: Options) -> bool:
    """Return True if `options` set the number of GPUs, or leave such an option out."""
    among = (options.get(name, "") for name in ("gres", "tres-per-task"))
    named = any(name in options for name in REQUESTS)
    return named or any(value is False or "gpu" in str(value) for value in among)


def asks_for_memory(options: Options) -> bool:
    """Return True if `options` set the amount of memory, or leave such an option out."""
    return any(name in options for name in ("mem", "mem-per-cpu", "mem-per-gpu"))


def check_sbatch(slurm: Slurm, extra: Mapping[str, str], where: str) -> None:
    """Refuse values that do not mean what they seem to. Raises ConfigError naming the field."""
    _known("gpu_option", slurm.gpu_option, GPU_OPTIONS)
    _known("memory_option", slurm.memory_option, MEMORY_OPTIONS)
    for name, value in extra.items():
        field = FIELDS.get(option_name(name))
        if field is not None:
            raise ConfigError(f"{where}.{name}={value}: hpc-dynamo sets this option", hint=field)
        if option_name(name) in WITH_VALUE and _value(value) is True:
            what = f"{where}.{name}={value}: --{option_name(name)} needs a value"
            raise ConfigError(what, hint=f"{where}.{name}=VALUE; false leaves the option out")


def check_gpu_type(gpu_type: str | None, where: str) -> None:
    """Raise ConfigError for `gpu:a100:4`, which is a whole request."""
    parts = (gpu_type or "").split(":")
    if len(parts) < 2:
        return
    names = [part for part in parts if part != "gpu" and not part.isdigit()]
    hint = f"{where}={(names or ['a100'])[0]}, and cluster.gpus_per_node=4 for their number"
    raise ConfigError(f"{where}={gpu_type} is more than a type", hint=hint)


def _known(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        what = f"cluster.slurm.{field}={value} is not known"
        raise ConfigError(what, hint=f"one of {', '.join(known)}")
