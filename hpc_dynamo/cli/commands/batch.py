"""`hpc-dynamo batch`: answer every request of a JSONL file. The same command resumes it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from hpc_dynamo.batch.exit_status import exit_status
from hpc_dynamo.batch.input_file import read_input
from hpc_dynamo.batch.ledger import Ledger
from hpc_dynamo.cli.arguments import add_launch_options
from hpc_dynamo.cli.launch_checks import check_here, check_statically
from hpc_dynamo.cli.launch_run import launch_run
from hpc_dynamo.cli.render.console import print_line
from hpc_dynamo.cli.run_folder import batch_run
from hpc_dynamo.cli.task_config import composed, resolve_batch

EXAMPLES = """\
  hpc-dynamo batch engine=simulator input=prompts.jsonl
  hpc-dynamo batch input=prompts.jsonl model.path=/shared/llama cluster.gpus_per_node=4 \\
      topology.prefill.workers=2 topology.decode.workers=2 cluster.slurm.time=08:00:00"""
NOTES = """\
Run the same command again to resume the batch, however it ended."""


def add_arguments(parser: ArgumentParser) -> None:
    add_launch_options(parser)


def check(args: Namespace) -> None:
    check_statically(resolve_batch(composed(args)))


def run(args: Namespace) -> int:
    """Start or resume the batch, follow it, and return its exit code."""
    checked = check_here(resolve_batch(composed(args)))
    config = checked.config
    requests = read_input(Path(config.input))
    run = batch_run(config, requests, print_line)
    results = Ledger(run, 0)
    if results.unfinished(requests):
        return launch_run(run, checked, detach=args.detach)
    answered, failed = results.merge(entry.custom_id for entry in requests.entries)
    print_line(f"nothing to do: all results are in {run.output} (and {run.errors.name})")
    code, reason = exit_status(run, answered, failed, retried=config.batch.retry_failed)
    if reason:
        print_line(reason)
    return code
