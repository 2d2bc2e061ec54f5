"""From `conf/` and the overrides of a command line to one frozen configuration.

The only importer of hydra and omegaconf; nothing of theirs leaves this file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpc_dynamo.cli import models
from hpc_dynamo.config import Config, Hardware, Role, Served, Task, about
from hpc_dynamo.errors import ConfigError, no_field, unknown_name

LAST = "+over=files"  # see _register

LORA = "model.lora"  # by any names, dots included

KINDS = "cluster.hardware"  # of any names, each with the fields of Hardware

# Fields that take any key: an override need not say `+`.
FREE = (
    "engine.args",
    "engine.env",
    *(f"engine.{role}.{field}" for role in Role for field in ("args", "env")),
    "batch.defaults",
    "cluster.slurm.extra",
    "models",
    LORA,
    KINDS,
)


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> Config:
    """The configuration that these Hydra overrides ask for.

    `config_dir` holds more files for the same groups, or replaces ours by name. Raises
    ConfigError naming the field, the value and what is known.
    """
    own, words = models.apart(overrides)
    config, in_files = _composed(own, config_dir)
    served = {
        name: _model(name, in_files.get(name, {}), words.get(name, []), own, config_dir, config)
        for name in {**in_files, **words}
    }
    task = Task.serve if served else config.task  # all that several models are for
    return replace(config, models=served, task=task)


def _model(
    name: str,
    in_files: object,
    words: list[str],
    own: list[str],
    config_dir: Path | None,
    run: Config,
) -> Served:
    """One of several: what a run of it alone would be. `own` words of the run gave `run`."""
    with about(name):
        groups, values = models.of_file(name, in_files)
        its = models.with_its_own(own, groups + words, run.topology.nodes)
        one, _ = _composed(its, config_dir, values)
    return Served(one.model.path, one.engine, one.topology, one.router, one.model.lora)


def _composed(
    overrides: Sequence[str], config_dir: Path | None, values: dict[str, Any] | None = None
) -> tuple[Config, dict[str, object]]:
    """A run of one model, and what files say of several. `values` lie over those of files."""
    search = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []
    _register(values or {})
    with _initialised():
        try:
            composed = hydra_compose("config", [*search, LAST, *map(_free, overrides)])
            plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
        except (HydraException, OmegaConfBaseException, ValueError) as e:
            raise _explained(e, overrides, config_dir) from e
    assert isinstance(plain, dict)
    _refuse_unknown(plain, asdict(Config()), "")
    several = {str(name): entry for name, entry in plain.pop("models").items()}
    plain["model"]["lora"] = dict(_dotted(plain["model"]["lora"]))
    plain["cluster"]["hardware"] = dict(map(_kind, plain["cluster"]["hardware"].items()))
    try:
        return msgspec.convert(plain, Config), several
    except msgspec.ValidationError as e:
        raise ConfigError(f"the configuration is not of its schema: {e}") from e


def show(config: Config) -> str:
    """The configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(msgspec.to_builtins(config)))


def conf_dir() -> Path:
    """Where `conf/` is: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@contextmanager
def _initialised() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="hpc_dynamo"):
        yield


def _kind(item: tuple[Any, Any]) -> tuple[str, Any]:
    """Name and fields of one kind of nodes, checked as the other fields were by Hydra."""
    name, given = item
    path, known = f"{KINDS}.{name}", OmegaConf.structured(Hardware)
    if not isinstance(given, dict):
        hint = f"{path}.partition=gpu, or another of its fields"
        raise ConfigError(f"{path}={given} is not a kind of nodes", hint=hint)
    _refuse_unknown(given, asdict(Hardware()), f"{path}.", free=(f"{path}.extra",))
    _thaw(known)
    try:
        return str(name), OmegaConf.to_container(OmegaConf.merge(known, given))
    except OmegaConfBaseException as e:
        what = f"{path}.{e.full_key}: {str(e).splitlines()[0]}"
        raise ConfigError(what, hint=f"such as {path}.nodes=2") from e


def _dotted(given: dict[Any, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots in them, of which Hydra makes a field in a field."""
    for name, value in given.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _register(values: dict[str, Any]) -> None:
    schema = OmegaConf.structured(Config)
    _thaw(schema)
    schema._get_node("models")._metadata.element_type = Any  # each is composed by itself
    schema.model._get_node("lora")._metadata.element_type = Any  # see _dotted
    # What an override adds would be frozen, and closed to the next: _kind checks it instead.
    schema.cluster._get_node("hardware")._metadata.element_type = Any
    ConfigStore.instance().store(name="schema", node=schema)
    # A group is merged in the order of the list of defaults: one that is added comes last.
    ConfigStore.instance().store(group="over", name="files", node=values, package="_global_")


def _thaw(node: DictConfig) -> None:
    """Frozen dataclasses become read-only nodes, which Hydra could not merge into."""
    node._set_flag("readonly", None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _thaw(child)


def _free(override: str) -> str:
    key = override.partition("=")[0]
    free = any(key == field or key.startswith(f"{field}.") for field in FREE)
    return f"++{override}" if free else override


def _explained(error: Exception, overrides: Sequence[str], config_dir: Path | None) -> ConfigError:
    """Hydra names the override; what is wrong with it stands in the cause."""
    if isinstance(error, OverrideParseException):
        what = f"{error.override} cannot be read: {str(error).splitlines()[0]}"
        return ConfigError(what, hint="FIELD=VALUE; quote values with special signs: input='a(b'")
    said = str(error)
    reason = str(error.__cause__ or error).split("full_key:")[0].strip()
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if f"Could not find '{key}/{value}'" in said:
            folders = [folder / key for folder in (conf_dir(), config_dir) if folder]
            return unknown_name(key, value, (p.stem for f in folders for p in f.glob("*.yaml")))
        if f"'{key}'" in said or override in said:
            known, wrong = _look_up(key)
            return wrong or ConfigError(f"{key}={value}: {reason}", hint=f"such as {key}={known}")
    culprit = next(filter(_fails_alone, overrides), "the configuration")
    return ConfigError(f"{culprit}: {reason}", hint="hpc-dynamo plan --help shows the fields")


def _fails_alone(override: str) -> bool:
    try:
        hydra_compose("config", [_free(override)])
    except (HydraException, OmegaConfBaseException, ValueError):
        return True
    return False


def _look_up(key: str) -> tuple[Any, ConfigError | None]:
    """The default of a field, or what is wrong with its name."""
    known: Any = asdict(Config())
    path = ""
    for part in key.split("."):
        if not isinstance(known, dict):
            return None, ConfigError(f"{key} is not a field", hint=f"{path} is a value")
        if part not in known:
            return None, no_field(path, part, known)
        known, path = known[part], f"{path}.{part}".lstrip(".")
    return known, None


def _refuse_unknown(
    given: dict[Any, Any], known: dict[str, Any], path: str, free: Sequence[str] = FREE
) -> None:
    """`+key=value` and files may add anything; only free-form fields may grow."""
    for name, value in given.items():
        full = f"{path}{name}"
        if name not in known:
            raise no_field(path.rstrip("."), name, known)
        if isinstance(value, dict) and isinstance(known[name], dict) and full not in free:
            _refuse_unknown(value, known[name], f"{full}.", free)
