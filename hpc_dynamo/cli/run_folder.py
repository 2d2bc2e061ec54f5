"""Create the folder of a run, or resume an existing one.

Results of different settings are never mixed, and no result is deleted: `overwrite=true` renames
the folder of a run to NAME.old-1, NAME.old-2 and so on. A job that Slurm restarts executes its
command again. Then `overwrite` and `batch.retry_failed` are ignored, since the first execution
applied them, and the run is resumed.
"""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

from hpc_dynamo import launch
from hpc_dynamo.batch.input_file import BatchInput
from hpc_dynamo.batch.ledger import Ledger
from hpc_dynamo.batch.merged_output import ResultLocation
from hpc_dynamo.config import Config, Task
from hpc_dynamo.engines.answer_settings import (
    SettingChange,
    Settings,
    answer_settings,
    differences,
    profile_settings,
)
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.messages import RunSettings
from hpc_dynamo.run import Run, Secrets, new_token, read_json, write_json
from hpc_dynamo.run.privacy import (
    PRIVATE_UMASK,
    require_private_folder,
    require_safe_cwd,
)
from hpc_dynamo.wire import new_keys

Notify = Callable[[str], object]  # prints a line for the user

MAX_NAMES_SHOWN = 3

SETTINGS: Mapping[Task, Callable[[Config], Settings]] = {
    Task.batch: answer_settings,
    Task.profile: profile_settings,
}


def batch_run(config: Config, requests: BatchInput, notify: Notify) -> Run:
    """Return the run of a batch, created if needed.

    Raises ConfigError if it has results of another input or of other settings.
    """
    run = _unused_folder(config, notify)
    known, recorded = run.identity(), _recorded(run)
    if recorded and _has_results(run):
        _check_task(config.task, run, recorded)
    results = Ledger(run, 0)
    locations = results.results()
    if known and locations and known.fingerprint != requests.fingerprint:
        raise _conflict(run, f"results of another input ({known.input})")
    if recorded and locations:
        _check_settings(config, run, recorded, locations, notify)
    _create(run)
    _record(config, run)
    if known is None or known.fingerprint != requests.fingerprint:
        run.write_identity(requests.file, requests.fingerprint)
    if config.batch.retry_failed and not launch.is_restarted_job(run):
        _retry(results, requests, notify)
    return run


def profile_run(config: Config, notify: Notify) -> Run:
    """Return the run of a profile, created if needed.

    Raises ConfigError if it has points of another engine, model or worker shape.
    """
    run = _unused_folder(config, notify)
    if (recorded := _recorded(run)) and _has_results(run):
        _check_task(config.task, run, recorded)
        defaults = profile_settings(Config())
        if changed := differences(recorded.settings, profile_settings(config), defaults):
            raise _other_settings(run, "points", changed)
    _create(run)
    _record(config, run)
    run.write_identity(Path(f"profile of {config.served_name}"), "")
    return run


def serve_run(config: Config, notify: Notify) -> Run:
    """Return the run of an endpoint, created if needed.

    Raises ConfigError for the folder of a batch or a profile.
    """
    run = _unused_folder(config, notify)
    known = run.identity()
    if known is not None:
        raise _conflict(run, f"results ({known.input})")
    _create(run)
    return run


def _unused_folder(config: Config, notify: Notify) -> Run:
    """Return the run, after a rename of its folder if `overwrite=true`. Makes new files private.

    Raises RunBusy if a job uses it. Raises FileRefused if another user could have written to it, or
    if all users could write to the current folder, which the job inherits.
    Raises ConfigError if its folder contains files but no run.
    """
    os.umask(PRIVATE_UMASK)
    run = Run(Path(config.runs_dir) / config.name)
    require_private_folder(run.path, make_private=False)
    _refuse_foreign_folder(run)
    require_private_folder(run.path)
    require_safe_cwd()
    launch.refuse_if_busy(run)
    if config.overwrite and run.attempts():
        if launch.is_restarted_job(run):
            notify(f"overwrite=true took effect when this job first ran: {run.path} is resumed")
        else:
            _rename_old(run, notify)
    return run


def _refuse_foreign_folder(run: Run) -> None:
    """Raise ConfigError if the folder contains something, but nothing of a run."""
    names = sorted(path.name for path in run.path.iterdir()) if run.path.exists() else []
    if names and not run.is_created:
        shown = ", ".join(names[:MAX_NAMES_SHOWN]) + (", …" if names[MAX_NAMES_SHOWN:] else "")
        what = f"name={run.path.name}: {run.path} is not the folder of a run; it contains {shown}"
        raise ConfigError(what, hint="name=OTHER, or runs_dir=FOLDER for all runs")


def _rename_old(run: Run, notify: Notify) -> None:
    """Rename a folder with results. Without results, delete what the run has created."""
    written = _count_results(run)
    if not written:
        run.delete()
        return
    old = _free_old_path(run)
    run.path.rename(old)
    notify(f"overwrite=true: {written} earlier results of {run.path} are now in {old}")


def _count_results(run: Run) -> int:
    """Count the results of the run's attempts: answers, failures, or points of a profile."""
    total = 0
    for part in run.results.glob("*.jsonl"):
        with part.open("rb") as file:
            total += sum(line.endswith(b"\n") for line in file)
    return total


def _has_results(run: Run) -> bool:
    return any(part.stat().st_size for part in run.results.glob("*.jsonl"))


def _free_old_path(run: Run) -> Path:
    names = (run.path.with_name(f"{run.path.name}.old-{n}") for n in count(1))
    return next(path for path in names if not os.path.lexists(path))


def _recorded(run: Run) -> RunSettings | None:
    """Return the settings of the run's results; None if it never started.

    For runs of earlier versions they come from the configuration of each attempt.
    """
    known = read_json(run.settings_file, RunSettings)
    attempts = run.attempts()
    if known or not attempts:
        return known
    config = attempts[-1].config()
    settings = SETTINGS[config.task](config) if config.task in SETTINGS else {}
    return RunSettings(task=config.task, settings=settings)


def _check_task(task: Task, run: Run, recorded: RunSettings) -> None:
    if recorded.task is not task:
        raise _conflict(run, f"other results, those of a {recorded.task}")


def _check_settings(
    config: Config,
    run: Run,
    recorded: RunSettings,
    locations: Mapping[str, ResultLocation],
    notify: Notify,
) -> None:
    """Raise ConfigError if answers made with other settings would be mixed with existing ones.

    A retry may change the engine's options, such as max-model-len, because that cures failures.
    It may change everything while there is no answer.
    """
    changed = differences(recorded.settings, answer_settings(config))
    if not changed:
        return
    good = sum(location.answered for location in locations.values())
    failed = len(locations) - good
    kept = f"{good} answers" if good else f"{failed} failed requests"
    curable = failed and (not good or all(d.in_options for d in changed))
    if curable and config.batch.retry_failed:
        notify(f"{run.path} holds {kept} made with other settings:{_as_list(changed)}")
        return
    again = f"batch.retry_failed=true runs only its {failed} failed requests again, "
    raise _other_settings(run, kept, changed, again if curable else "")


def _other_settings(
    run: Run, kept: str, changed: Sequence[SettingChange], first: str = ""
) -> ConfigError:
    return _conflict(run, f"{kept} made with other settings:{_as_list(changed)}", first)


def _conflict(run: Run, held: str, first: str = "") -> ConfigError:
    """Return the error for a folder that holds something else. `first` is the preferred remedy."""
    what = f"name={run.path.name}: {run.path} holds {held}"
    return ConfigError(what, hint=first + _new_name_hint(run))


def _as_list(changed: Sequence[SettingChange]) -> str:
    return "".join(f"\n    {difference}" for difference in changed)


def _new_name_hint(run: Run) -> str:
    """Return overrides that help, quoted for a shell."""
    names = (f"{run.path.name}-{n}" for n in count(2))
    free = next(name for name in names if not run.path.with_name(name).exists())
    name = shlex.quote(f"name={free}")
    old = _free_old_path(run)
    return f"{name} for a run of its own, or overwrite=true, which moves the old one to {old}"


def _retry(results: Ledger, requests: BatchInput, notify: Notify) -> None:
    again = results.retry_failed(requests)
    if again:
        notify(f"batch.retry_failed=true: {again} failed requests run again")


def _create(run: Run) -> None:
    """Make the folder, or keep the keys of an existing one."""
    public, private = new_keys()
    run.create(Secrets(token=new_token(), public=public, private=private))


def _record(config: Config, run: Run) -> None:
    """Record in the folder the settings that its results are made with from now on."""
    settings = SETTINGS[config.task](config)
    write_json(run.settings_file, RunSettings(task=config.task, settings=settings))
