"""`hpc-dynamo serve`: an OpenAI endpoint until it is stopped or the walltime ends."""

import shlex
from argparse import ArgumentParser, Namespace

from hpc_dynamo.cli.arguments import add_launch_options
from hpc_dynamo.cli.launch_checks import check_here, check_statically
from hpc_dynamo.cli.launch_run import launch_run
from hpc_dynamo.cli.render.console import print_line
from hpc_dynamo.cli.run_folder import serve_run
from hpc_dynamo.cli.task_config import composed, resolve_serve

EXAMPLES = """\
  hpc-dynamo serve engine=simulator
  hpc-dynamo serve model.path=/shared/llama cluster.gpus_per_node=4 name=afternoon \\
      topology.prefill.workers=2 topology.decode.workers=2 cluster.slurm.time=04:00:00
  hpc-dynamo serve models.small.path=/shared/llama-8b models.small.topology=aggregated \\
      models.large.path=/shared/llama-70b models.large.topology.prefill.workers=2 \\
      cluster.gpus_per_node=4
  hpc-dynamo serve --detach engine=simulator"""
NOTES = """\
The command prints base URL, key and the ssh command for your laptop. Ctrl-C ends the job.
With `planner.job_handover=true` the next job takes over before the walltime ends."""


def add_arguments(parser: ArgumentParser) -> None:
    add_launch_options(parser)


def check(args: Namespace) -> None:
    check_statically(resolve_serve(composed(args)))


def run(args: Namespace) -> int:
    checked = check_here(resolve_serve(composed(args)))
    run = serve_run(checked.config, print_line)
    if args.detach:
        print_line(f"to see the endpoint: hpc-dynamo status {shlex.quote(str(run.path))}")
    return launch_run(run, checked, detach=args.detach)
