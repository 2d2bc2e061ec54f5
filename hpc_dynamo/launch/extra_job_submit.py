"""`python -m hpc_dynamo.launch.extra_job_submit FOLDER MINUTES` submits an extra job of an attempt.

It runs in a process without the environment of the current job, which the new job would inherit.
"""

import importlib
import sys
from pathlib import Path

from hpc_dynamo.config import with_extra_job, with_hardware
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
    config = with_extra_job(with_hardware(folder.config(), plan.hardware), folder.number, minutes)
    record = submit(folder, config, plan, entry)
    write_json(folder.job_file, record)
    print(record.job_id)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except HpcDynamoError as e:
        sys.exit(e.message)
