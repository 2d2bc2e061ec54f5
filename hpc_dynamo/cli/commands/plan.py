"""`hpc-dynamo plan`: show the layout of a run. It starts and writes nothing."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_dynamo import launch
from hpc_dynamo.cli.arguments import add_overrides
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.launch_checks import check_statically
from hpc_dynamo.cli.model_checks import model_warnings, refuse_models
from hpc_dynamo.cli.node_resources import planned_launcher, resolve_node_resources
from hpc_dynamo.cli.overrides.commented import commented
from hpc_dynamo.cli.render.console import OUT, print_line
from hpc_dynamo.cli.render.engine_commands import engine_commands
from hpc_dynamo.cli.render.layout import layout_table
from hpc_dynamo.cli.task_config import resolve_batch, resolve_profile, resolve_serve
from hpc_dynamo.config import Config, Heterogeneous, Launcher, Role, Task, with_hardware
from hpc_dynamo.engines import check as check_engines
from hpc_dynamo.errors import ConfigError, LaunchError, MissingDependency
from hpc_dynamo.launch import partitions, sbatch_script
from hpc_dynamo.launch.layout_check import check_layout, fit_to_nodes, layout_warnings
from hpc_dynamo.launch.partitions import PartitionNodes
from hpc_dynamo.run import Run
from hpc_dynamo.topology import Plan
from hpc_dynamo.topology import plan as lay_out

ENTRY = "hpc_dynamo.tasks.node"
CONFIGS: dict[Task, Callable[[Config], Config]] = {
    Task.batch: resolve_batch,
    Task.serve: resolve_serve,
    Task.profile: resolve_profile,
}

EXAMPLES = """\
  hpc-dynamo plan engine=simulator topology.prefill.workers=2
  hpc-dynamo plan cluster.gpus_per_node=4 topology.prefill.tensor_parallel=4
  hpc-dynamo plan --dry-run --verb serve cluster.gpus_per_node=8 > serve.sbatch
  hpc-dynamo plan --sbatch cluster.gpus_per_node=8 cluster.slurm.partition=gpu > job.sbatch
  hpc-dynamo plan --commands recipe=llama-70b-2p2d-sglang cluster.gpus_per_node=8"""
NOTES = ""


@dataclass(frozen=True)
class Planned:
    """Configuration and layout to show, and the nodes of the partitions, if known."""

    config: Config
    layout: Plan
    nodes: Sequence[PartitionNodes]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of the verb."""
    add_overrides(parser)
    one = parser.add_mutually_exclusive_group()
    about = "print the script that the verb submits with these overrides"
    one.add_argument("--dry-run", action="store_true", help=about)
    about = "print an sbatch script to keep and submit yourself; it accepts more overrides"
    one.add_argument("--sbatch", action="store_true", help=about)
    about = "print the command, environment and files of every worker"
    one.add_argument("--commands", action="store_true", help=about)
    one.add_argument("--show", action="store_true", help="print the whole configuration")
    about = "verb of the script (batch; with several models: serve)"
    parser.add_argument("--verb", choices=[str(task) for task in Task], help=about)


def check(args: Namespace) -> None:
    config = _planned(args).config
    if not (config.models or config.model.path):
        # Engines refuse layouts only if they have a model; any path stands for it.
        config = replace(config, model=replace(config.model, path="/model"))
    check_statically(config)


def run(args: Namespace) -> int:
    """Print the layout, a script, the engines' commands or the configuration."""
    planned = _planned(args)
    config, layout = planned.config, planned.layout
    if args.dry_run:
        print(submitted_script(config, layout), end="")
    elif args.sbatch:
        print(_own_script(args, config, layout), end="")
    elif args.commands:
        print("\n\n".join(engine_commands(config, layout)))
    elif args.show:
        print(commented(config), end="")
    else:
        OUT.print(layout_table(config, layout))
        for line in (*_unused(args.overrides, config), *_warnings(planned)):
            print_line(line)
        check_layout(config, layout, planned.nodes)
    return 0


def _planned(args: Namespace) -> Planned:
    """Make the checks of the verb that would start this layout. Raises ConfigError.

    Models are checked only if they are set: the arguments of an sbatch script may set them.
    """
    config = compose(args.overrides, args.config_dir)
    config = replace(config, task=Task(args.verb) if args.verb else config.task)
    config = CONFIGS[config.task](config) if args.dry_run else config
    launcher = planned_launcher(config.cluster)
    config = resolve_node_resources(config, launcher) if launcher is Launcher.allocation else config
    layout = lay_out(config)
    if not args.show and (config.models or config.model.path):
        check_engines(config, layout)
        refuse_models(config, on_node=False)
    nodes = partitions.query_partitions() if launcher is Launcher.slurm else ()
    return Planned(fit_to_nodes(config, layout, nodes), layout, nodes)


def _unused(overrides: Sequence[str], config: Config) -> Iterator[str]:
    """Yield a warning for each override of a pool that the topology does not run."""
    for name, own in config.by_model.items():
        prefix = f"models.{name}." if name else ""
        used = [role for role, _ in own.topology.pools]
        others = [role for role in Role if role not in used]
        sections = [f"{prefix}{part}.{role}" for part in ("topology", "engine") for role in others]
        for key in (word.lstrip("+").partition("=")[0] for word in overrides):
            if key.startswith(tuple(f"{section}." for section in sections)):
                running = " and ".join(used)
                kind = f"{prefix}topology={own.topology.kind}"
                yield f"warning: {key} has no effect: {kind} runs {running} workers"


def _warnings(planned: Planned) -> Iterator[str]:
    config = planned.config
    for line in layout_warnings(config, planned.layout, planned.nodes):
        yield f"warning: {line}"
    if config.models or config.model.path:
        yield from model_warnings(config, on_node=False)


def submitted_script(config: Config, layout: Plan) -> str:
    """Return the script that the verb submits for its next attempt. Raises ConfigError."""
    # If there is no Slurm here, assume that it can start heterogeneous jobs, as most can.
    with suppress(LaunchError, MissingDependency):
        layout = launch.with_submission_mode(Launcher.slurm, config, layout)
    if layout.separate_jobs:
        raise _several_jobs()
    run = Run(Path(config.runs_dir) / config.name)
    attempt = run.attempt(1) if config.overwrite else run.next_attempt()
    if len(layout.group_plans) > 1:
        return sbatch_script.hetjob_script(attempt, config, layout, ENTRY)
    return sbatch_script.submission_script(attempt, with_hardware(config, layout.hardware), layout)


def _own_script(args: Namespace, config: Config, layout: Plan) -> str:
    if config.cluster.slurm.heterogeneous is Heterogeneous.jobs and len(layout.group_plans) > 1:
        raise _several_jobs()
    words = list(args.overrides)
    if args.config_dir:
        words += ["--config-dir", str(args.config_dir.absolute())]
    return sbatch_script.render_script(config, layout, config.task, words)


def _several_jobs() -> ConfigError:
    hint = "cluster.slurm.heterogeneous=hetjob, or run batch or serve without a script"
    return ConfigError("cluster.slurm.heterogeneous=jobs: one script requests one job", hint=hint)
