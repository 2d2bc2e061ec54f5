"""The verbs that start a job: a batch, an endpoint, or a profile."""

import re
import shlex
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from hpc_dynamo import launch
from hpc_dynamo.batch.exit_status import exit_status
from hpc_dynamo.batch.input_file import read_input
from hpc_dynamo.batch.ledger import Ledger
from hpc_dynamo.cli import run_folder as runs
from hpc_dynamo.cli.cancel import Cancel
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.follow import follow
from hpc_dynamo.cli.model_checks import model_warnings, refuse_models
from hpc_dynamo.cli.node_resources import asked_of_slurm, counted
from hpc_dynamo.cli.render import profile as profiled
from hpc_dynamo.cli.render import serving
from hpc_dynamo.cli.render import status as views
from hpc_dynamo.cli.render.console import OUT
from hpc_dynamo.cli.run_folder import serve_run
from hpc_dynamo.config import Config, Launcher, Planner, PlannerMode, Serve, Task, check_folder
from hpc_dynamo.engines import check, is_mpi_step, with_engine_limits
from hpc_dynamo.errors import ConfigError, HpcDynamoError
from hpc_dynamo.launch import extra_jobs, mpi_step
from hpc_dynamo.messages import Outcome
from hpc_dynamo.planner.interpolation import load_performance
from hpc_dynamo.planner.profile import load_profile
from hpc_dynamo.run import Attempt, Run
from hpc_dynamo.tasks import node
from hpc_dynamo.topology import Plan
from hpc_dynamo.topology import plan as lay_out

CTRL_C = 130  # exit code, as in a shell


def batch(args: Namespace) -> int:
    """Answer every request of a JSONL file; the same command again resumes."""
    config = batch_config(_composed(args))
    source = Path(config.input)
    launcher = launch.resolve_launcher(config.cluster.launcher)
    config, layout = _checked(config, launcher)
    requests = read_input(source)
    run = runs.batch_run(config, requests, say)
    results = Ledger(run, 0)
    if not results.unfinished(requests):
        answered, failed = results.merge(entry.custom_id for entry in requests.entries)
        say(f"nothing to do: all results are in {run.output} (and {run.errors.name})")
        code, why = exit_status(run, answered, failed, retried=config.batch.retry_failed)
        if why:
            say(why)
        return code
    return go(run, config, layout, launcher, detach=args.detach)


def serve(args: Namespace) -> int:
    """Give an OpenAI endpoint until it is ended or the walltime is over."""
    config = serve_config(_composed(args))
    launcher = launch.resolve_launcher(config.cluster.launcher)
    config, layout = _checked(config, launcher)
    run = serve_run(config, say)
    if args.detach:
        OUT.print(f"where it answers: hpc-dynamo status {shlex.quote(str(run.path))}", markup=False)
    return go(run, config, layout, launcher, detach=args.detach)


def profile(args: Namespace) -> int:
    """Measure an engine and a worker shape; the same command again resumes."""
    config = profile_config(_composed(args))
    launcher = launch.resolve_launcher(config.cluster.launcher)
    config, layout = _checked(config, launcher)
    run = runs.profile_run(config, say)
    if run.profile.exists():
        OUT.print(f"nothing to do: {run.profile} is there; overwrite=true measures again")
    elif code := go(run, config, layout, launcher, detach=args.detach):
        return code
    if run.profile.exists():  # not where it was only submitted
        OUT.print(profiled.summary(load_profile(run.profile)))
    return 0


def batch_config(config: Config) -> Config:
    """Return the configuration that `batch` runs with. Raises ConfigError."""
    if not config.input:
        raise ConfigError("input is not set", hint="input=prompts.jsonl, a line a request")
    source = Path(config.input).absolute()
    return placed(replace(config, task=Task.batch, input=str(source)), source.stem)


def serve_config(config: Config) -> Config:
    """Return the configuration that `serve` runs with. Raises ConfigError."""
    config = replace(config, task=Task.serve, serve=files(config.serve))
    return placed(config, _served(config))


def profile_config(config: Config) -> Config:
    """Return the configuration that `profile` runs with. Raises ConfigError."""
    name = f"profile-{config.engine.name}-{_folder(config)}"
    return placed(replace(config, task=Task.profile), name)


def say(text: str) -> None:
    """Print a line for the user without markup."""
    OUT.print(text, markup=False)


def _composed(args: Namespace) -> Config:
    config = compose(args.overrides, args.config_dir)
    if not args.no_preflight:
        return config
    return replace(config, cluster=replace(config.cluster, preflight=False))


def go(run: Run, config: Config, layout: Plan, launcher: Launcher, *, detach: bool) -> int:
    """Start an attempt and stay with it. Raises what it ended with, if not well."""
    attempt = run.new_attempt(config, layout)
    OUT.print(views.layout(config, layout))
    for warning in model_warnings(config, on_node=launcher is Launcher.local):
        say(warning)
    with Cancel(OUT) as cancel:
        job = _submitted(launcher, attempt, config, layout, cancel)
        OUT.print(views.started(attempt, launcher), markup=False)
        if detach:
            return 0
        outcome = follow(attempt, job, OUT, cancel)
        while outcome.next_attempt and (
            after := launch.find_job(attempt.run.attempt(outcome.next_attempt))
        ):
            OUT.print(outcome.message, markup=False)
            attempt = attempt.run.attempt(outcome.next_attempt)
            if endpoint := attempt.endpoint():  # from now on
                OUT.print(serving.how_to(attempt, endpoint), markup=False)
            outcome = follow(attempt, after, OUT, cancel)
    return _conclude(attempt, outcome, cancelled=cancel.by_ctrl_c)


def _submitted(
    launcher: Launcher, attempt: Attempt, config: Config, layout: Plan, cancel: Cancel
) -> launch.LaunchedJob:
    """Return the started job. Ctrl-C also ends sbatch; that failure is not reported as its own."""
    try:
        return launch.start_attempt(launcher, attempt, config, layout, node.main)
    except HpcDynamoError:
        if cancel.by_ctrl_c:
            raise KeyboardInterrupt from None
        raise


def _conclude(attempt: Attempt, outcome: Outcome, *, cancelled: bool) -> int:
    """Show the outcome and return the exit code. Raises HpcDynamoError if the job failed."""
    serves = attempt.config().task is Task.serve
    if outcome.summary is not None:
        OUT.print(views.summary(attempt, outcome.summary))
    if cancelled and (serves or outcome.exit_code) and outcome.summary is None:
        OUT.print(views.ended(attempt, outcome), markup=False)
        return CTRL_C
    if outcome.exit_code:
        error = HpcDynamoError(outcome.message)
        error.exit_code = outcome.exit_code
        raise error
    if outcome.message:
        OUT.print(views.ended(attempt, outcome), markup=False)
    return 0


def placed(config: Config, default_name: str) -> Config:
    """With a name, a run folder that means the same on every node, and what the engine needs."""
    name = config.name or default_name
    planner = replace(config.planner, profile=_profile(config.planner))
    runs = str(Path(config.runs_dir).absolute())
    check_folder(runs, name)
    return with_engine_limits(replace(config, name=name, runs_dir=runs, planner=planner))


def _profile(planner: Planner) -> str:
    """Its absolute path. Raises ConfigError where a planner is to go by it and cannot."""
    if planner.mode is not PlannerMode.sla:
        return planner.profile
    if not planner.profile:
        hint = "planner.profile=FILE, which `hpc-dynamo profile` writes; or planner=load"
        raise ConfigError("planner.mode=sla needs a profile of the engine", hint=hint)
    load_performance(planner.profile)
    return str(Path(planner.profile).absolute())


def _served(config: Config) -> str:
    return f"serve-{_folder(config)}"


def _folder(config: Config) -> str:
    """The model's name as a folder's, or those of several."""
    names = "+".join(config.models) or config.model.served_name
    return re.sub(r"[^\w.+-]+", "-", names)


def files(serve: Serve) -> Serve:
    """With paths that mean the same on every node. Raises ConfigError for one that is none."""
    key = key_file("serve.api_key_file", serve.api_key_file)
    cert = _file("serve.tls_cert", serve.tls_cert)
    return replace(
        serve, api_key_file=key, tls_cert=cert, tls_key=_file("serve.tls_key", serve.tls_key)
    )


def key_file(name: str, value: str) -> str:
    """Its absolute path; a key is needed in it. Raises ConfigError."""
    key = _file(name, value)
    if key and not Path(key).read_text().strip():
        hint = f"openssl rand -hex 32 > {key}, or leave {name} out"
        raise ConfigError(f"{name}={key} is empty", hint=hint)
    return key


def _file(name: str, value: str) -> str:
    if value and not Path(value).is_file():
        raise ConfigError(f"{name}={value}: no such file", hint="a file on a shared disk")
    return str(Path(value).absolute()) if value else ""


def _checked(config: Config, launcher: Launcher) -> tuple[Config, Plan]:
    """Refuse what could not run there. The returned configuration has the amounts to ask for."""
    if config.route.engines:
        what = "route.* names engines that run already, and this verb starts its own"
        raise ConfigError(what, hint="hpc-dynamo route …")
    hands_over = config.planner.job_handover and config.task is Task.serve
    if hands_over and launcher is Launcher.allocation:
        what = "planner.job_handover=true submits jobs, and this allocation is somebody's own"
        raise ConfigError(
            what, hint="the same command on a login node, or planner.job_handover=false"
        )
    config = counted(config, launcher)
    layout = lay_out(config)
    check(config, layout)
    extra_jobs.check_scale_out(config, layout, launcher)
    worlds = any(is_mpi_step(config, worker) for worker in layout.workers)
    mpi_step.check_launcher(launcher, config, worlds=worlds)
    refuse_models(config, on_node=launcher is Launcher.local)
    layout = launch.with_submission_mode(launcher, config, layout)
    return asked_of_slurm(config, layout, launcher), layout
