"""`hpc-dynamo chaos`: inject random faults into a run of yours."""

import shlex
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections import Counter
from contextlib import suppress

from hpc_dynamo.cli.arguments import add_run
from hpc_dynamo.cli.chaos.batch_probe import BatchProbe
from hpc_dynamo.cli.chaos.client_probe import ClientProbe
from hpc_dynamo.cli.chaos.injection import FaultInjection, Recovery
from hpc_dynamo.cli.chaos.probe import Probe
from hpc_dynamo.cli.chaos.processes import RunProcesses
from hpc_dynamo.cli.chaos.schedule import ProcessKind, schedule
from hpc_dynamo.cli.chat.client import ChatClient
from hpc_dynamo.cli.render.console import print_line
from hpc_dynamo.cli.run_lookup import find_endpoint, find_run, serving_attempt
from hpc_dynamo.config import Task
from hpc_dynamo.errors import ConfigError, ExitCode, HpcDynamoError
from hpc_dynamo.run import Attempt, Run

LAST_ANSWERS_S = 30.0  # limit for requests that run at the end

# prose: ignore (commands)
EXAMPLES = """\
  hpc-dynamo chaos --seed 1 --dry-run  # show the faults for the newest run that has not ended
  hpc-dynamo chaos name=afternoon --seed 1
  hpc-dynamo chaos afternoon --seed 2 --faults 20 --interval 60 --only engine,frontend"""
NOTES = """\
Each fault is a SIGKILL, or a SIGSTOP of 5 to 25 s. Ctrl-C ends the faults and undoes SIGSTOPs. The
same seed gives the same faults. The requests of a batch show if it works. Exit code 1: requests
were lost, or the endpoint has ended or the batch has failed."""


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of the verb."""
    add_run(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="selects the faults (0)")
    parser.add_argument("--faults", type=int, default=5, metavar="N", help="number of faults (5)")
    about = "seconds of observation after each fault (30)"
    parser.add_argument("--interval", type=float, default=30.0, metavar="S", help=about)
    every = (*ProcessKind,)
    about = f"processes, comma-separated: {', '.join(every)} (all)"
    parser.add_argument("--only", type=_targets, default=every, metavar="KIND", help=about)
    about = "requests per second of the probe client (2)"
    parser.add_argument("--rate", type=float, default=2.0, metavar="R", help=about)
    parser.add_argument("--dry-run", action="store_true", help="print the faults and return")


def _targets(text: str) -> tuple[ProcessKind, ...]:
    try:
        return tuple(ProcessKind(name) for name in text.split(","))
    except ValueError as e:
        raise ArgumentTypeError(f"{e}; known: {', '.join(ProcessKind)}") from e


def run(args: Namespace) -> int:
    """Inject the faults, report each one, and return the exit code."""
    attempt = _attempt(args)
    processes = RunProcesses(attempt)
    found = [process for process in processes.find() if process.target in args.only]
    if not found:
        raise ConfigError(f"{attempt.run.path} has no such process", hint="--only engine,head")
    faults = schedule(args.seed, found, args.faults)
    if args.dry_run:
        for fault in faults:
            print_line(str(fault))
        return ExitCode.done
    probe = _probe(attempt, args.rate)
    with probe:
        injection = FaultInjection(attempt, processes, probe)
        try:
            injection.run(faults, args.interval, lambda recovery: print_line(_row(recovery)))
        except KeyboardInterrupt:
            print_line("interrupted; stopped processes are resumed")
        finally:
            injection.undo()
    probe.wait(LAST_ANSWERS_S)
    return _summary(attempt, probe)


def _attempt(args: Namespace) -> Attempt:
    """Return the attempt of a batch or an endpoint that runs. Raises HpcDynamoError without one."""
    run = find_run(args, _is_running, "running batch or endpoint")
    attempt = serving_attempt(run)
    if attempt.config().task is Task.serve:
        return find_endpoint(args)[0]
    if attempt.config().task is not Task.batch or attempt.outcome() or not attempt.status():
        what = f"{run.path} is no batch that runs now"
        raise ConfigError(what, hint=f"hpc-dynamo status {shlex.quote(str(run.path))}")
    return attempt


def _is_running(run: Run) -> bool:
    with suppress(HpcDynamoError):  # incomplete, or written by another version
        return any(attempt.outcome() is None for attempt in run.attempts()[-1:])
    return False


def _probe(attempt: Attempt, rate: float) -> Probe:
    """Return what shows if the run works: requests of a client, or the progress of a batch."""
    endpoint = attempt.endpoint()
    if endpoint is None:
        return BatchProbe(attempt)
    return ClientProbe(lambda: _client(attempt), endpoint.model, 1 / rate)


def _client(attempt: Attempt) -> ChatClient:
    """Return a client for the address at which the run answers now."""
    endpoint = attempt.endpoint()
    if endpoint is None:
        raise ConfigError(f"{attempt.run.path} has no endpoint now")
    cert = attempt.config().serve.tls_cert or ""
    return ChatClient(endpoint.url, attempt.run.api_key(), cert)


def _row(recovery: Recovery) -> str:
    if recovery.error:
        return f"{recovery.fault}: not injected: {recovery.error}"
    answered, ready = recovery.answered_after_s, recovery.ready_after_s
    texts = [
        "no answer" if answered is None else f"answers after {answered:.1f} s",
        "not all workers ready" if ready is None else f"all workers ready after {ready:.1f} s",
        f"{recovery.lost} requests lost",
    ]
    return f"{recovery.fault}: {', '.join(texts)}"


def _summary(attempt: Attempt, probe: Probe) -> int:
    """Print the number of lost requests with their errors; return the exit code."""
    errors = Counter(result.error for result in probe.results if result.error)
    lost = errors.total() + probe.unanswered
    print_line(f"{len(probe.results) + probe.unanswered} requests, {lost} lost")
    for error, count in errors.most_common(5):
        print_line(f"  {count} x {error}")
    if probe.unanswered:
        print_line(f"  {probe.unanswered} x not answered within {LAST_ANSWERS_S:.0f} s")
    outcome = attempt.outcome()
    if outcome:
        print_line(f"the run has ended: {outcome.message or 'all done'}")
    ended = outcome and (outcome.exit_code or attempt.config().task is Task.serve)
    return ExitCode.failed if lost or ended else ExitCode.done
