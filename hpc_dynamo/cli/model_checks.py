"""Model checks on the login node, before anything is submitted."""

import os
from collections.abc import Iterator

from hpc_dynamo.config import Config, Policy, Task
from hpc_dynamo.engines import rank_notes
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.model_files import SIMULATOR, Problem, Severity, check_models
from hpc_dynamo.preprocess import tokenizer_problem

ANYWAY = "cluster.preflight=false skips this check"


def refuse_models(config: Config, *, on_node: bool) -> None:
    """Raise ConfigError for models that no engine can load.

    `on_node`: engines run on this machine, so a path that is missing here is an error.
    """
    problems = _problems(config, on_node=on_node)
    errors = [p for p in problems if p.severity is Severity.error]
    if errors:
        fixes = dict.fromkeys(p.fix for p in errors)
        what = "\n".join(p.what for p in errors)
        raise ConfigError(what, hint=f"{'; '.join(fixes)} ({ANYWAY})")


def model_warnings(config: Config, *, on_node: bool) -> Iterator[str]:
    """Yield warnings about the models before the job starts, each with a remedy."""
    for problem in _problems(config, on_node=on_node) or _untokenized(config):
        yield f"{problem.severity}: {problem}"
    yield from (f"{Severity.note}: {note}" for note in rank_notes(config))


def _problems(config: Config, *, on_node: bool) -> tuple[Problem, ...]:
    if not config.cluster.preflight:
        return ()
    return check_models(config, os.environ, on_node=on_node)


def _untokenized(config: Config) -> Iterator[Problem]:
    """Yield models whose texts cannot be routed by the KV caches of their workers."""
    for model, own in config.by_model.items():
        simulated = own.engine.name == SIMULATOR
        if own.router.policy is not Policy.kv or (config.task is Task.batch and simulated):
            # A batch computes the token ids of the simulator without a model folder.
            continue
        if missing := tokenizer_problem(own, os.environ):
            what = f"models.{model}: {missing.message}" if model else missing.message
            yield Problem(Severity.note if simulated else Severity.warning, what, missing.hint)
