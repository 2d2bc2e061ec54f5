"""`python -m hpc_dynamo.launch.extra_job_submit JOB MINUTES` submits a further job of an attempt.

In a process of its own, without the environment of the job that asks for it: that would tell the
new job that it is the old one.
"""

import importlib
import sys
from pathlib import Path

from hpc_dynamo.config import with_extra_job, with_hardware
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.launch import local, slurm
from hpc_dynamo.run import ExtraJobFolder, write_json

ENTRY = "hpc_dynamo.tasks.join"  # by name: it is of a higher layer


def main(path: str, minutes: str) -> None:
    job = ExtraJobFolder(Path(path))
    plan, owner = job.plan(), job.attempt.job()
    start = local.submit if owner and owner.launcher == "local" else slurm.submit
    entry = importlib.import_module(ENTRY).main
    config = with_extra_job(with_hardware(job.config(), plan.hardware), job.number, minutes)
    record = start(job, config, plan, entry)
    write_json(job.job_file, record)
    print(record.job_id)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except HpcDynamoError as e:
        sys.exit(e.message)
