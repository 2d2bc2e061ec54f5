"""One task of a worker that is a step: sees the worker's GPUs on its node, runs the command.

    python -I -S rank.py GPUS COMMAND [ARG …]      (a task of the step that world.py describes)

GPUS are the worker's on each of its nodes, as indexes among those that the step sees there:
`0,1/2,3` for two nodes. A program in the interpreter's folder is found before others of its name.
What Slurm and MPI tell a rank goes also into a container of Apptainer. A task that is alone is no
rank, and is told nothing: it would look for a world that is not there. Standard library only, since
inside of an image this is all there is of us.
"""

import os
import sys

RANKS = ("SLURM_", "PMI_", "PMIX_", "OMPI_")
TOLD = (*RANKS, "CUDA_VISIBLE_DEVICES")


def main() -> None:
    gpus, argv = sys.argv[1], sys.argv[2:]
    env = dict(os.environ)
    indexes = gpus.split("/")[int(env["SLURM_NODEID"])].split(",")
    given = env.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else []
    seen = [names[int(i)] if names else i for i in indexes if i]
    env["CUDA_VISIBLE_DEVICES"] = ",".join(seen)
    if "/" in argv[0]:
        env["PATH"] = f"{os.path.dirname(argv[0])}:{env.get('PATH', os.defpath)}"
    if env.get("SLURM_STEP_NUM_TASKS") == "1":
        env = {name: value for name, value in env.items() if not name.startswith(RANKS)}
    told = {name: value for name, value in env.items() if name.startswith(TOLD)}
    env |= {f"APPTAINERENV_{name}": value for name, value in told.items()}
    os.execvpe(argv[0], argv, env)


if __name__ == "__main__":
    main()
