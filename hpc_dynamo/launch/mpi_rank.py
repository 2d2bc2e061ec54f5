"""Task of a worker that runs as a Slurm step (mpi_step.py): selects its GPUs and runs the command.

    python -I -S mpi_rank.py GPUS COMMAND [ARG …]

GPUS are the worker's GPUs on each of its nodes, as indexes among those that the step sees there:
`0,1/2,3` for two nodes. Programs in the interpreter's folder are found first. The variables of
Slurm and MPI are also passed into an Apptainer container. The only task of a step is not an MPI
rank: it gets none of these variables, or it would wait for other ranks. Standard library only,
since an image contains nothing else of hpc_dynamo.
"""

import os
import sys

RANKS = ("SLURM_", "PMI_", "PMIX_", "OMPI_")
PASSED = (*RANKS, "CUDA_VISIBLE_DEVICES")


def main() -> None:
    """Set the environment of this task, then replace it with the command."""
    gpus, argv = sys.argv[1], sys.argv[2:]
    env = dict(os.environ)
    indexes = gpus.split("/")[int(env["SLURM_NODEID"])].split(",")
    visible = env.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else []
    env["CUDA_VISIBLE_DEVICES"] = ",".join(names[int(i)] if names else i for i in indexes if i)
    if "/" in argv[0]:
        env["PATH"] = f"{os.path.dirname(argv[0])}:{env.get('PATH', os.defpath)}"
    if env.get("SLURM_STEP_NUM_TASKS") == "1":
        env = {name: value for name, value in env.items() if not name.startswith(RANKS)}
    passed = {name: value for name, value in env.items() if name.startswith(PASSED)}
    env |= {f"APPTAINERENV_{name}": value for name, value in passed.items()}
    os.execvpe(argv[0], argv, env)


if __name__ == "__main__":
    main()
