"""Exit code and message of a batch whose requests all have a result."""

from pathlib import Path

from hpc_dynamo.batch.ledger import read_failures
from hpc_dynamo.errors import ExitCode
from hpc_dynamo.run import Run

RETRY_HINT = "run the same command with batch.retry_failed=true"
FINAL_ERRORS_HINT = (
    "these errors are final: change the engine option that the error names and run the same "
    "command again, or correct these requests in another input=… with another name=…"
)


def exit_status(run: Run, answered: int, failed: int, *, retried: bool) -> tuple[int, str]:
    """Return exit code and message of a finished batch. Reads errors.jsonl.

    The code is 0 if no request failed, 3 if none was answered, else 4. `retried`: the
    command had batch.retry_failed=true.
    """
    if not failed:
        return ExitCode.done, ""
    first, final = _first_failure(run.errors)
    if not answered:
        return ExitCode.refused, f"no request was answered; the first error: {first}"
    requests = "1 request" if failed == 1 else f"{failed} requests"
    what = f"finished, but {requests} of {answered + failed} failed: see {run.errors}"
    hint = FINAL_ERRORS_HINT if retried and final else RETRY_HINT
    return ExitCode.some_failed, f"{what}\n  the first error: {first}\n  try: {hint}"


def _first_failure(errors: Path) -> tuple[str, bool]:
    """Return id and error of the first failure, and whether all failures are final."""
    first, final = "", True
    for line in read_failures(errors):
        first = first or f"{line.custom_id}: {line.error.message if line.error else ''}"
        final = final and line.finished
    return first, final
