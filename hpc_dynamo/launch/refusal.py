"""sbatch's errors for a refused job, and the fields that change what it refused."""

import re

from hpc_dynamo.errors import LaunchError

# Prefixes of errors that repeat the one before in general words, or stand without one.
GENERAL = "Batch job submission failed: "
SAID = re.compile(r"^(?:sbatch: )?(?:error|fatal): (?P<text>.*)")
# srun's reasons for not starting a step. Its other errors are about tasks that have run.
STEP = re.compile(
    r"^srun: (?:fatal: (?P<fatal>.*)|error: (?P<error>(?:Invalid|Only allocated"
    r"|Unable to (?:create|confirm|allocate)).*)|(?P<usage>(?:unrecognized|invalid) option.*))"
)
NO_PROGRAM = re.compile(r"^slurmstepd\S*: error: (?P<text>execve\(\): .*)")
USAGE = re.compile(r"^sbatch: (?P<text>.*(?:option|argument).*)")

OPTION = r"option"
YOURS = "`sacctmgr show associations user=$USER format=account,partition,qos` lists yours"
# By Slurm's messages (src/common/slurm_errno.c, src/common/slurm_opt.c). The first match counts.
FIELDS = (
    (r"CPU count", "cluster.cpus_per_node=N; `sinfo -o '%P %c'` shows what nodes have"),
    (
        r"[Mm]emory|--mem",
        "cluster.memory_gb_per_node=N (0: all of a node's), or "
        "cluster.slurm.memory_option=mem-per-cpu or none; `sinfo -o '%P %m'` shows what nodes have",
    ),
    (r"qos|QOS", f"cluster.slurm.qos=NAME or cluster.slurm.account=NAME; {YOURS}"),
    (r"[Aa]ccount", f"cluster.slurm.account=NAME or cluster.slurm.partition=NAME; {YOURS}"),
    (r"[Tt]ime limit|--time", "cluster.slurm.time=HH:MM:SS; `sinfo -o '%P %l'` shows the limits"),
    (r"partition", "cluster.slurm.partition=NAME; `sinfo -o '%P'` lists them"),
    (
        r"[Gg]eneric resource|[Gg]res|GRES|TRES|gpu",
        "cluster.gpus_per_node=N, cluster.slurm.gpu_type=TYPE, or cluster.slurm.gpu_option=gres, "
        "gpus or none; `sinfo -o '%P %G'` shows what nodes have",
    ),
    (r"feature|constraint", "cluster.slurm.constraint=FEATURE; `sinfo -o '%P %f'` lists them"),
    (r"reservation", "cluster.slurm.reservation=NAME; `scontrol show reservation` lists them"),
    (
        r"[Nn]ode count|node configuration|[Mm]ore processors|[Nn]odes? .*not available",
        "topology.nodes, cluster.gpus_per_node, cluster.slurm.gpu_type, cluster.cpus_per_node or "
        "cluster.memory_gb_per_node; `sinfo -o '%P %D %c %m %G'` shows the nodes",
    ),
    (r"node name", "cluster.slurm.extra.nodelist=NODES; `sinfo -N` lists them"),
    (r"wckey|WCKey", "cluster.slurm.extra.wckey=KEY"),
    (r"[Ll]icense", "cluster.slurm.extra.licenses=NAME:N; `scontrol show licenses` lists them"),
    (r"[Dd]ependency", "cluster.slurm.extra.dependency=afterok:JOB"),
    (
        OPTION,
        "cluster.slurm.extra.NAME=VALUE, NAME=true for a flag, NAME=false to leave it out; "
        "`sbatch --help` lists the names",
    ),
    (
        r"[Cc]ontact|[Cc]onnect|timed out|resolve_ctls|fetch_config",
        "the same command later; `scontrol ping` shows whether the controller answers",
    ),
)
OTHERWISE = "cluster.slurm.partition, .account, .qos or .time; `sinfo` lists partitions"


def submission_error(output: str) -> LaunchError:
    """Return the error for an sbatch that printed `said` and submitted nothing."""
    errors = error_lines(output) or ["sbatch gave no reason"]
    matches = (hint for error in errors for sign, hint in FIELDS if re.search(sign, error))
    return LaunchError(f"sbatch refused the job: {errors[0]}", hint=next(matches, OTHERWISE))


def step_error(log: str) -> LaunchError | None:
    """Return why srun could not start a job's step, from the output of the job's script; None if no
    reason is found. The same command would be refused again."""
    found = (STEP.match(line) or NO_PROGRAM.match(line) for line in log.splitlines())
    reason = next((next(filter(None, match.groups())) for match in found if match), "")
    if not reason:
        return None
    fields = (hint for sign, hint in FIELDS if sign != OPTION and re.search(sign, reason))
    hint = next(fields, "cluster.slurm.srun_args and cluster.slurm.extra: srun reads both")
    return LaunchError(f"srun could not start the agents: {reason}", hint=hint)


def error_lines(output: str) -> list[str]:
    """Return the errors in what sbatch printed, in order, without their prefixes.

    Remarks and warnings of the site may stand between them.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    found = [match["text"] for line in lines if (match := SAID.match(line) or USAGE.match(line))]
    return [text.removeprefix(GENERAL) for text in found or lines]
