"""`python -m hpc_dynamo.launch.extra_job_submit FOLDER MINUTES` submits an extra job of an attempt.

It runs in a process without the environment of the current job, which the new job would inherit.
"""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

from hpc_dynamo.config import Config, with_hardware
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.launch import local, slurm
from hpc_dynamo.run import ExtraJobFolder, write_json

ENTRY = "hpc_dynamo.tasks.join"  # by name, since it is in a higher layer


def main(path: str, minutes: str) -> None:
    """Submit the extra job in the folder `path` with a walltime of `minutes`; print its id."""
    folder = ExtraJobFolder(Path(path))
    plan, head_job = folder.plan(), folder.attempt.job()
    submit = local.submit if head_job and head_job.launcher == "local" else slurm.submit
    entry = importlib.import_module(ENTRY).main
    config = _config(with_hardware(folder.config(), plan.hardware), folder.number, minutes)
    record = submit(folder, config, plan, entry)
    write_json(folder.job_file, record)
    print(record.job_id)


def _config(config: Config, number: int, minutes: str) -> Config:
    """Return the run's configuration with the extra job's name and walltime, and without MPI."""
    slurm_config = replace(config.cluster.slurm, time=minutes, mpi="none")
    cluster = replace(config.cluster, slurm=slurm_config)
    return replace(config, name=f"{config.name}+{number}", cluster=cluster)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except HpcDynamoError as e:
        sys.exit(e.message)
