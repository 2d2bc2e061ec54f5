"""Checks of a configuration before its job is started."""

from dataclasses import dataclass

from hpc_dynamo import launch
from hpc_dynamo.cli.model_checks import refuse_models
from hpc_dynamo.cli.node_resources import resolve_node_resources, resolve_slurm_request
from hpc_dynamo.config import Config, Launcher, Task
from hpc_dynamo.engines import check, is_mpi_step
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch import extra_jobs, mpi_step
from hpc_dynamo.topology import Plan
from hpc_dynamo.topology import plan as lay_out


@dataclass(frozen=True)
class Checked:
    """Configuration that passed all checks, with its layout and the launcher to use."""

    config: Config
    layout: Plan
    launcher: Launcher


def check_statically(config: Config) -> Checked:
    """Make all checks that need neither Slurm nor files of models.

    `cluster.launcher=auto` is taken for Slurm. Raises ConfigError.
    """
    launcher = config.cluster.launcher
    launcher = Launcher.slurm if launcher is Launcher.auto else launcher
    return _check(config, launcher, on_node=False)


def check_here(config: Config) -> Checked:
    """Make all checks on the machine that starts the job. Raises ConfigError.

    The returned configuration has the resources to request for each node.
    """
    launcher = launch.resolve_launcher(config.cluster.launcher)
    checked = _check(config, launcher, on_node=launcher is Launcher.local)
    layout = launch.with_submission_mode(launcher, checked.config, checked.layout)
    return Checked(resolve_slurm_request(checked.config, layout, launcher), layout, launcher)


def _check(config: Config, launcher: Launcher, *, on_node: bool) -> Checked:
    if config.route.engines:
        what = "route.* names running engines, but this verb starts engines"
        raise ConfigError(what, hint="hpc-dynamo route …")
    hands_over = config.planner.job_handover and config.task is Task.serve
    if hands_over and launcher is Launcher.allocation:
        what = "planner.job_handover=true submits jobs, which an allocation of yours cannot do"
        raise ConfigError(
            what, hint="the same command on a login node, or planner.job_handover=false"
        )
    config = resolve_node_resources(config, launcher)
    layout = lay_out(config)
    check(config, layout)
    extra_jobs.check_extra_jobs(config, layout, launcher)
    worlds = any(is_mpi_step(config, worker) for worker in layout.workers)
    mpi_step.check_launcher(launcher, config, mpi_steps=worlds)
    refuse_models(config, on_node=on_node)
    return Checked(config, layout, launcher)
