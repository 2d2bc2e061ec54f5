"""`python -m hpc_dynamo.launch.submitit_task FOLDER` runs the task that submitit pickled there.

A pickle is a program. So this module first checks that only this user could have written it. Then
it loads the pickle through the checked folder's descriptor: a folder that is moved to this path
afterwards has no effect.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.run.privacy import PRIVATE_UMASK, open_private_folder


def main(path: str) -> None:
    """Run the task. Raises FileRefused if another user could have changed the folder."""
    os.umask(PRIVATE_UMASK)
    submitit_entry()(f"/proc/self/fd/{open_private_folder(Path(path))}")


def submitit_entry() -> Callable[[str], None]:
    """Return submitit's function that runs a task, imported without NumPy.

    submitit imports NumPy, if it is installed, for pickles with arrays. There are none here, and
    NumPy costs each task 0.1 s of CPU time and the threads of its BLAS.
    """
    sys.modules["numpy"] = None  # type: ignore[assignment]  # `import numpy` raises ImportError
    try:
        from submitit.core.submission import process_job
    finally:
        del sys.modules["numpy"]
    return process_job


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except HpcDynamoError as e:
        sys.exit(f"error: {e}")
