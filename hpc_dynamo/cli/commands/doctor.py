"""`hpc-dynamo doctor`: check the nodes, in a job of its own or in an allocation."""

import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace

from hpc_dynamo import launch
from hpc_dynamo.cli.arguments import add_overrides, path
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.node_resources import resolve_node_resources, resolve_slurm_request
from hpc_dynamo.cli.render.console import OUT, print_line
from hpc_dynamo.cli.render.doctor import report_view
from hpc_dynamo.cli.run_folder import serve_run
from hpc_dynamo.cli.run_lookup import is_run, is_run_name
from hpc_dynamo.cli.task_config import resolve_run
from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.doctor import task
from hpc_dynamo.doctor.coordinator import report_file
from hpc_dynamo.doctor.records import DoctorReport
from hpc_dynamo.engines import rank_notes
from hpc_dynamo.errors import ExitCode, LaunchError, UsageError
from hpc_dynamo.launch import JobState, LaunchedJob
from hpc_dynamo.run import Attempt, read_json, write_json
from hpc_dynamo.topology import Plan
from hpc_dynamo.topology import plan as lay_out

POLL_S = 0.2
# A shared disk may show the report later than the scheduler shows the end of the job.
REPORT_WAIT_S = 5.0

EXAMPLES = """\
  hpc-dynamo doctor
  hpc-dynamo doctor topology.nodes=8 cluster.gpus_per_node=4 cluster.slurm.partition=gpu
  hpc-dynamo doctor --json found.json engine=simulator topology.nodes=2"""
NOTES = """\
Inside salloc it checks all nodes of the allocation, else it submits a job. It takes a minute and
needs no model. Pass the overrides of your serve or batch command to check the model, the engine
and the GPUs as well. The exit code is 1 if there is a fault."""


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("--json", type=path, metavar="FILE", help="write all findings to this file")


def check(args: Namespace) -> None:
    config = resolve_run(compose(args.overrides, args.config_dir), "doctor")
    if config.cluster.gpus_per_node is not None:  # else the allocation has the number
        lay_out(config)


def run(args: Namespace) -> int:
    """Measure all nodes. The exit code is 1 if there is a fault."""
    _refuse_runs(args.overrides)
    config = resolve_run(compose(args.overrides, args.config_dir), "doctor")
    launcher = launch.resolve_launcher(config.cluster.launcher)
    config = resolve_node_resources(config, launcher)
    layout = _layout(config, launcher)
    config = resolve_slurm_request(config, layout, launcher)
    for note in rank_notes(config):
        print_line(f"note: {note}")
    attempt = serve_run(config, print_line).new_attempt(config, layout)
    job = launch.start_attempt(launcher, attempt, config, layout, task.main)
    print_line(f"checking {layout.nodes} node(s), logs in {attempt.logs}")
    try:
        report = _await_report(attempt, job)
    except KeyboardInterrupt:
        job.cancel()
        raise
    OUT.print(report_view(report))
    if args.json:
        write_json(args.json, report)
    return ExitCode.done if report.healthy else ExitCode.failed


def _refuse_runs(words: Sequence[str]) -> None:
    """Raise UsageError for the folder or the name of a run, which other verbs take."""
    for word in words:
        if "=" not in word and (is_run(word) or is_run_name(word, words)):
            what = f"{word} is a run; doctor takes no run, only FIELD=VALUE overrides"
            hint = "hpc-dynamo doctor, with the overrides of your serve or batch command if any"
            raise UsageError(what, hint=hint)


def _layout(config: Config, launcher: Launcher) -> Plan:
    """Return the layout to measure: all nodes of an allocation, even those without a worker."""
    layout = lay_out(config)
    if launcher is not Launcher.allocation or len(layout.group_plans) > 1:
        return layout
    given = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    return replace(layout, nodes=max(layout.nodes, given))


def _await_report(attempt: Attempt, job: LaunchedJob) -> DoctorReport:
    """Wait for the report. The job has deadlines of its own. Raises LaunchError if it ends."""
    ended_at, shown = 0.0, ""
    while (report := read_json(report_file(attempt), DoctorReport)) is None:
        state, detail = job.state()
        if state is JobState.pending and detail != shown:
            print_line(shown := detail)
        if state is JobState.ended:
            ended_at = ended_at or time.monotonic()
            if time.monotonic() - ended_at > REPORT_WAIT_S:
                what = f"the job ended without a report ({detail})"
                hint = f"also {attempt.submitit}; check that every node sees {attempt.run.path}"
                raise LaunchError(what, log=attempt.agent_log(0), hint=hint)
        time.sleep(POLL_S)
    return report
