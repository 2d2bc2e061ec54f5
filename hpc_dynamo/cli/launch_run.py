"""Start an attempt of a run and follow it until its end."""

from hpc_dynamo import launch
from hpc_dynamo.cli.cancel import Cancellation
from hpc_dynamo.cli.follow import follow
from hpc_dynamo.cli.launch_checks import Checked
from hpc_dynamo.cli.model_checks import model_warnings
from hpc_dynamo.cli.render.console import OUT, print_line
from hpc_dynamo.cli.render.endpoint import instructions
from hpc_dynamo.cli.render.layout import layout_table
from hpc_dynamo.cli.render.status import ended_line, started_line, summary
from hpc_dynamo.config import Launcher, Task
from hpc_dynamo.errors import ExitCode, HpcDynamoError
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Attempt, Run
from hpc_dynamo.tasks import node


def launch_run(run: Run, checked: Checked, *, detach: bool) -> int:
    """Start a new attempt and follow it, and the jobs that take over from it, to the end.

    Returns the exit code. Raises HpcDynamoError if the job failed.
    """
    config, launcher = checked.config, checked.launcher
    attempt = run.new_attempt(config, checked.layout)
    OUT.print(layout_table(config, checked.layout))
    for warning in model_warnings(config, on_node=launcher is Launcher.local):
        print_line(warning)
    with Cancellation(OUT) as cancellation:
        job = _start(attempt, checked, cancellation)
        print_line(started_line(attempt, launcher))
        if detach:
            return ExitCode.done
        outcome = follow(attempt, job, OUT, cancellation)
        while outcome.next_attempt and (
            after := launch.find_job(run.attempt(outcome.next_attempt))
        ):
            print_line(outcome.message)
            attempt = run.attempt(outcome.next_attempt)
            if endpoint := attempt.endpoint():
                print_line(instructions(attempt, endpoint))
            outcome = follow(attempt, after, OUT, cancellation)
    return _conclude(attempt, config.task, outcome, cancelled=cancellation.by_ctrl_c)


def _start(attempt: Attempt, checked: Checked, cancellation: Cancellation) -> launch.LaunchedJob:
    """Return the started job. Ctrl-C also ends sbatch; that failure is not reported."""
    try:
        return launch.start_attempt(
            checked.launcher, attempt, checked.config, checked.layout, node.main
        )
    except HpcDynamoError:
        if cancellation.by_ctrl_c:
            raise KeyboardInterrupt from None
        raise


def _conclude(attempt: Attempt, task: Task, outcome: Outcome, *, cancelled: bool) -> int:
    """Show the outcome and return the exit code. Raises HpcDynamoError if the job failed."""
    serves = task is Task.serve
    if outcome.summary is not None:
        OUT.print(summary(attempt, outcome.summary))
    if cancelled and (serves or outcome.exit_code) and outcome.summary is None:
        print_line(ended_line(attempt, outcome))
        return ExitCode.interrupted
    if outcome.exit_code:
        error = HpcDynamoError(outcome.message)
        error.exit_code = outcome.exit_code
        raise error
    if outcome.message:
        print_line(ended_line(attempt, outcome))
    return ExitCode.done
