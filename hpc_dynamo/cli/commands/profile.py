"""`hpc-dynamo profile`: measure an engine and a worker shape. The same command resumes it."""

from argparse import ArgumentParser, Namespace

from hpc_dynamo.cli.arguments import add_launch_options
from hpc_dynamo.cli.launch_checks import check_here, check_statically
from hpc_dynamo.cli.launch_run import launch_run
from hpc_dynamo.cli.render.console import OUT, print_line
from hpc_dynamo.cli.render.profile import profile_table
from hpc_dynamo.cli.run_folder import profile_run
from hpc_dynamo.cli.task_config import composed, resolve_profile
from hpc_dynamo.planner.profile import load_profile

EXAMPLES = """\
  hpc-dynamo profile engine=simulator topology=aggregated
  hpc-dynamo profile model.path=/shared/llama cluster.gpus_per_node=4 name=llama-tp4 \\
      topology.prefill.tensor_parallel=4 topology.decode.tensor_parallel=4"""
NOTES = """\
It measures TTFT, ITL, throughput, start time and KV transfer of one worker of each role, and
the error of interpolation between its points. It writes profile.json and profile.png into the
run folder. The planner uses it with `planner.profile=runs/llama-tp4/profile.json planner.mode=sla`.
Run the same command again to resume the profile, however it ended."""


def add_arguments(parser: ArgumentParser) -> None:
    add_launch_options(parser)


def check(args: Namespace) -> None:
    check_statically(resolve_profile(composed(args)))


def run(args: Namespace) -> int:
    """Start or resume the profile, follow it, and print its result."""
    checked = check_here(resolve_profile(composed(args)))
    run = profile_run(checked.config, print_line)
    if run.profile.exists():
        print_line(f"nothing to do: {run.profile} exists; overwrite=true measures again")
    elif code := launch_run(run, checked, detach=args.detach):
        return code
    if run.profile.exists():  # it does not after --detach
        OUT.print(profile_table(load_profile(run.profile)))
    return 0
