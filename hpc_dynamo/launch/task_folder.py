"""Start of each task of a job: refuses a run or a current folder that other users can change."""

import os
import sys

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.run import Run
from hpc_dynamo.run.privacy import PRIVATE_UMASK, require_private_folder, require_safe_cwd


def refuse_unsafe_folder(run: Run) -> int:
    """Make new files private. Return an exit code if another user could have changed the run; it is
    printed to Slurm's log, since nothing is written to such a folder.

    An unsafe current folder is left for the run folder: Slurm starts tasks in /tmp if a node does
    not have the folder of the submission.
    """
    os.umask(PRIVATE_UMASK)
    try:
        require_private_folder(run.path)
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        return e.exit_code
    try:
        require_safe_cwd()
    except (HpcDynamoError, OSError) as e:
        print(f"warning: continuing in {run.path}: {e}", file=sys.stderr, flush=True)
        os.chdir(run.path)
    return 0
