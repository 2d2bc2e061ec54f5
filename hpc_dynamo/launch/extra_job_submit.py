"""`python -m hpc_dynamo.launch.extra_job_submit FOLDER MINUTES` submits an extra job of an attempt.

`detached_submit` starts it.
"""

import importlib
from pathlib import Path

from hpc_dynamo.config import with_extra_job, with_hardware
from hpc_dynamo.launch import local, slurm
from hpc_dynamo.launch.detached_submit import run_submission
from hpc_dynamo.run import ExtraJobFolder, write_json

ENTRY = "hpc_dynamo.tasks.join"  # by name, since it is in a higher layer


def main(path: str, minutes: str) -> str:
    """Submit the extra job in the folder `path` with a walltime of `minutes`; return its id."""
    folder = ExtraJobFolder(Path(path))
    plan, head_job = folder.plan(), folder.attempt.job()
    submit = local.submit if head_job and head_job.launcher == "local" else slurm.submit
    entry = importlib.import_module(ENTRY).main
    config = with_extra_job(with_hardware(folder.config(), plan.hardware), folder.number, minutes)
    record = submit(folder, config, plan, entry)
    write_json(folder.job_file, record)
    return record.job_id


if __name__ == "__main__":
    run_submission(main)
