"""`python -m hpc_dynamo.launch.submitit_task FOLDER` runs the task that submitit pickled there.

A pickle is a program. So this module first checks that only this user could have written it. Then
it loads the pickle through the checked folder's descriptor: a folder that is moved to this path
afterwards has no effect.
"""

import os
import sys
from pathlib import Path

from submitit.core.submission import process_job

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.run.privacy import PRIVATE_UMASK, open_private_folder


def main(path: str) -> None:
    """Run the task. Raises FileRefused if another user could have changed the folder."""
    os.umask(PRIVATE_UMASK)
    process_job(f"/proc/self/fd/{open_private_folder(Path(path))}")


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except HpcDynamoError as e:
        sys.exit(f"error: {e}")
