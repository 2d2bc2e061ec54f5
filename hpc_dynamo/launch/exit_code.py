"""End a job with the exit code of its attempt, so that Slurm and dependent jobs see it.

    python -m hpc_dynamo.launch.exit_code ATTEMPT CODE

CODE is that of srun: the highest of all tasks. It is used only if the head wrote no outcome, since
a lost agent does not fail a job whose head finished the work.
"""

import sys
from pathlib import Path

from hpc_dynamo.run import Attempt


def exit_code(attempt: Attempt, srun_code: int) -> int:
    """Return the exit code of a job whose step has ended."""
    outcome = attempt.outcome()
    return outcome.exit_code if outcome else srun_code


if __name__ == "__main__":
    sys.exit(exit_code(Attempt(Path(sys.argv[1])), int(sys.argv[2])))
