"""Check of `engine.args` before submission: options that hpc-dynamo controls, and unknown ones.

The names that each engine knows come from `contract`. Options that hpc-dynamo controls are in
`EngineAdapter.controlled_options`; users cannot override them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hpc_dynamo.config import Config, Engine, Role
from hpc_dynamo.engines.adapter import EngineAdapter
from hpc_dynamo.engines.contract import contracts, long_names, option_names, plain_name, version_key
from hpc_dynamo.errors import ConfigError, quoted_override

# Options of the three engines with the same purpose.
SYNONYMS = (
    ("max-model-len", "context-length", "max-seq-len"),
    ("gpu-memory-utilization", "mem-fraction-static", "free-gpu-memory-fraction"),
    ("max-num-batched-tokens", "chunked-prefill-size", "max-num-tokens"),
    ("max-num-seqs", "max-running-requests", "max-batch-size"),
    ("tool-call-parser", "tool-parser"),
)


@dataclass(frozen=True)
class OptionSource:
    """Options that were written below one field, for the workers of these roles."""

    field: str  # engine.args, or engine.ROLE.args
    args: Mapping[str, Any]
    roles: tuple[Role, ...]


def check_options(config: Config, adapter: EngineAdapter) -> None:
    """Raise ConfigError for options of one model's engines that cannot be set, or are unknown."""
    engine = config.engine
    if engine.version and len(version_key(engine.version)) < 2:
        raise ConfigError(
            f"engine.version={engine.version} is no version", hint="engine.version=1.3"
        )
    if not contracts(engine.name):
        return
    for source in _sources(config):
        for written, value in source.args.items():
            _refuse_controlled(engine.name, adapter, source, written, value)
            if engine.check_options and value is not None:
                _refuse_unknown(engine, adapter, source, written, value)


def _sources(config: Config) -> Iterable[OptionSource]:
    roles = tuple(role for role, _ in config.topology.pools)
    yield OptionSource("engine.args", config.engine.args, roles)
    for role in roles:
        yield OptionSource(f"engine.{role}.args", config.engine.role_options(role).args, (role,))


def _refuse_controlled(
    name: str, adapter: EngineAdapter, source: OptionSource, written: str, value: Any
) -> None:
    option = resolve_name(name, written)
    fields = {resolve_name(name, o): field for o, field in adapter.controlled_options.items()}
    if option not in fields:
        return
    fields_of_roles = dict.fromkeys(fields[option].format(role=role) for role in source.roles)
    what = f"{source.field}.{written}: hpc-dynamo sets --{option} of each {name} worker itself"
    if from_fields := [field for field in fields_of_roles if field]:
        what += f", by {' and '.join(field.partition('=')[0] for field in from_fields)}"
    raise ConfigError(what, hint=_instead(from_fields, value) or f"remove {source.field}.{written}")


def _instead(fields: Iterable[str], value: Any) -> str:
    """Return overrides that set the value, if it can be the value of these fields."""
    if isinstance(value, bool | Mapping | list | tuple | None):
        return ""
    shown = (f if "=" in f else quoted_override(f, value) for f in fields if f != "model.lora")
    return " ".join(each for each in shown)


def resolve_name(engine: str, written: str) -> str:
    """Return the first name of an option in any spelling: an alias, with dashes or underscores, or
    a unique beginning, which the parsers of the engines accept too."""
    plain, names = plain_name(written).partition(".")[0], option_names(engine)
    if plain in names:
        return names[plain]
    begun = {own for name, own in names.items() if name.startswith(plain)}
    return begun.pop() if len(begun) == 1 else plain


def _refuse_unknown(
    engine: Engine, adapter: EngineAdapter, source: OptionSource, written: str, value: Any
) -> None:
    name, own = engine.name, written.partition(".")[0].replace("_", "-")
    known = long_names(name, engine.version)
    versions = " and ".join(contract.version for contract in contracts(name, engine.version))
    off = f"engine.check_options=false if your {name} has other options than {versions}"
    full = f"{source.field}.{written}"
    if own not in known and own not in adapter.own_options:
        others = [e for e in ("vllm", "sglang", "trtllm") if e != name and own in long_names(e)]
        whose = f"; {' and '.join(others)} has it" if others else ""
        what = f"{full}: --{own} is not an option of {name} {versions}{whose}"
        meant = _meant(name, written, foreign=bool(others))
        question = f"did you mean {source.field}.{meant}? " if meant else ""
        raise ConfigError(what, hint=f"{question}{off}")
    if value is False and adapter.negates_flags and f"no-{own}" not in known:
        what = f"{full}=false: --no-{own} is not an option of {name} {versions}"
        raise ConfigError(what, hint=f"remove {full}, or {off}")


def _meant(engine: str, written: str, *, foreign: bool) -> str:
    """Return the option that was probably meant; empty if there is none. The name of an option of
    another engine (`foreign`) is no misspelling."""
    plain, names = plain_name(written), option_names(engine)
    resolved = resolve_name(engine, written)
    if resolved in names:
        return resolved
    same = [name for group in SYNONYMS if plain in group for name in group if name in names]
    close = same or ([] if foreign else get_close_matches(plain, names, n=1))
    return names[close[0]] if close else ""
