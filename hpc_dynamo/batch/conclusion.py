"""Exit code and message of a batch whose requests all have a result."""

from hpc_dynamo.messages import SOME_FAILED
from hpc_dynamo.run import Run


def conclusion(run: Run, answered: int, failed: int, first_failure: str = "") -> tuple[int, str]:
    """Return exit code 0 if no request failed, 3 if none was answered, else SOME_FAILED."""
    if not failed:
        return 0, ""
    if not answered:
        first = f"; the first of them: {first_failure}" if first_failure else ""
        return 3, f"no request was answered{first}"
    requests = "1 request" if failed == 1 else f"{failed} requests"
    what = f"finished, but {requests} of {answered + failed} failed: see {run.errors}"
    return SOME_FAILED, f"{what}\n  try: the same command with batch.retry_failed=true"
