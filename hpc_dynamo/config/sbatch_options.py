"""Options of sbatch: long names, the fields that set them, and `cluster.slurm.extra`.

An option in `cluster.slurm.extra` replaces the generated one, so a script never sets one twice.
"""

from hpc_dynamo.config.schema.cluster import Slurm

Options = dict[str, str | int | bool]

REQUESTS = ("gpus-per-node", "gpus", "gpus-per-task", "gpus-per-socket")  # these only request GPUs
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
    return {option_name(name): option_value(value) for name, value in slurm.extra.items()}


def option_name(name: str) -> str:
    """Return the long name of an option, also if written `--no-requeue`, `no_requeue` or `p`."""
    bare = name.lstrip("-").replace("_", "-")
    return LETTERS.get(bare, bare)


def option_value(text: str) -> str | bool:
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
