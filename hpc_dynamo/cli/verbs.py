"""What each verb does."""

import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from hpc_dynamo import launch, node
from hpc_dynamo.batch.ledger import Ledger
from hpc_dynamo.batch.requests import Requests, scan
from hpc_dynamo.cli import views
from hpc_dynamo.cli.compose import compose, show
from hpc_dynamo.cli.follow import follow
from hpc_dynamo.config import Config, Launcher
from hpc_dynamo.engines import engine
from hpc_dynamo.errors import ConfigError, HpcDynamoError, RunBusy
from hpc_dynamo.launch.script import render
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Attempt, Run, Secrets, new_token
from hpc_dynamo.topology import Plan
from hpc_dynamo.topology import plan as lay_out
from hpc_dynamo.wire import new_keys

OUT = Console(soft_wrap=True, highlight=False)


def plan(args: Namespace) -> int:
    """Show the layout, or the sbatch script, of a configuration; starts nothing."""
    config = compose(args.overrides, args.config_dir)
    layout = lay_out(config)
    if args.dry_run:
        words = list(args.overrides)
        if args.config_dir:
            words += ["--config-dir", str(args.config_dir.absolute())]
        print(render(config, layout, args.verb, words), end="")
    elif args.show:
        print(show(config), end="")
    else:
        OUT.print(views.layout(config, layout))
    return 0


def batch(args: Namespace) -> int:
    """Answer every request of a JSONL file; the same command again resumes."""
    config = _named(compose(args.overrides, args.config_dir))
    launcher = launch.resolve(config.cluster.launcher)
    layout = _checked(config, launcher)
    requests = scan(Path(config.input))
    run = _open(config, requests)
    results = Ledger(run, 0)
    if not results.unfinished(requests):
        results.merge(entry.custom_id for entry in requests.entries)
        OUT.print(f"nothing to do: all results are in {run.output} (and {run.errors.name})")
        return 0
    attempt = run.new_attempt(config, layout)
    OUT.print(views.layout(config, layout))
    job = launch.start(launcher, attempt, config, layout, node.main)
    OUT.print(views.started(attempt, launcher))
    if args.detach:
        return 0
    outcome = follow(attempt, job, OUT)
    _conclude(attempt, outcome)
    return outcome.exit_code


def status(args: Namespace) -> int:
    """Show how a run is: its job, its workers, its progress."""
    attempt = _latest(_find(args))
    job = launch.find(attempt)
    OUT.print(views.status(attempt, job.state() if job else None))
    return 0


def stop(args: Namespace) -> int:
    """End the job of a run on all its nodes; finished results stay."""
    run = _find(args)
    attempt = _latest(run)
    job = launch.find(attempt)
    state = job.state()[0] if job else launch.JobState.ended
    if job is None or state is launch.JobState.ended:
        OUT.print(f"{run.path} is not running")
        return 0
    job.stop()
    outcome = follow(attempt, job, OUT)
    OUT.print(f"{run.path}: {outcome.message or 'it had finished'}")
    return 0


VERBS: dict[str, tuple[Callable[[Namespace], int], str]] = {
    "plan": (plan, "show the layout of a topology, or the sbatch script for it"),
    "batch": (batch, "answer every request of a JSONL file"),
    "status": (status, "show how a run is"),
    "stop": (stop, "end the job of a run"),
}


def _named(config: Config) -> Config:
    """With an input, a name, and paths that mean the same on every node."""
    if not config.input:
        raise ConfigError("input is not set", hint="input=prompts.jsonl, a line a request")
    source = Path(config.input).absolute()
    name = config.name or source.stem
    if "/" in name or name.startswith("."):
        raise ConfigError(f"name={name!r} must be a plain folder name", hint="name=my-run")
    runs = str(Path(config.runs).absolute())
    return replace(config, input=str(source), name=name, runs=runs)


def _checked(config: Config, launcher: Launcher) -> Plan:
    """Refuse here what could not run there."""
    if launcher is Launcher.local and config.cluster.gpus_per_node is None:
        gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        config = replace(config, cluster=replace(config.cluster, gpus_per_node=gpus))
    layout = lay_out(config)
    engine(config.engine.name).check(config, layout)
    return layout


def _open(config: Config, requests: Requests) -> Run:
    """The run's folder, new or to be resumed. Raises RunBusy, or ConfigError for a folder
    whose results belong to another input."""
    run = Run(Path(config.runs) / config.name)
    launch.refuse_if_busy(run)
    if config.overwrite and run.path.exists():
        shutil.rmtree(run.path)
    known = run.identity()
    if known is not None and known.fingerprint != requests.fingerprint:
        what = f"name={config.name}: {run.path} holds results of another input ({known.input})"
        raise ConfigError(what, hint="another name=…, or overwrite=true to throw them away")
    public, private = new_keys()
    run.create(Secrets(token=new_token(), public=public, private=private))
    if known is None:
        run.identify(requests.file, requests.fingerprint)
    return run


def _conclude(attempt: Attempt, outcome: Outcome) -> None:
    if outcome.summary is not None:
        OUT.print(views.summary(attempt, outcome.summary))
    if outcome.exit_code:
        error = HpcDynamoError(outcome.message)
        error.exit_code = outcome.exit_code
        raise error


def _find(args: Namespace) -> Run:
    """The run that a folder, `name=`, or nothing (the newest) points to."""
    words = list(args.overrides)
    if words and "=" not in words[0]:
        return _existing(Run(Path(words[0])))
    config = compose(words, args.config_dir)
    runs = Path(config.runs)
    if config.name:
        return _existing(Run(runs / config.name))
    found = sorted(runs.glob("*/attempts"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise ConfigError(f"runs={runs} holds no run", hint="name=…, runs=… or the run's folder")
    return Run(found[-1].parent)


def _existing(run: Run) -> Run:
    if not run.attempts():
        near = ", ".join(sorted(p.name for p in run.path.parent.glob("*") if p.is_dir()))
        raise ConfigError(f"{run.path} is not a run", hint=f"known: {near or 'none'}")
    return run


def _latest(run: Run) -> Attempt:
    attempts = run.attempts()
    if not attempts:
        raise RunBusy(f"{run.path} has no attempt yet", hint="hpc-dynamo batch …")
    return attempts[-1]
