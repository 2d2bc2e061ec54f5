"""Engine options that the user set (`engine.args`): reading, checking and command lines."""

import json
from collections.abc import Mapping
from typing import Any

from hpc_dynamo.config import Engine
from hpc_dynamo.engines.option_names import multi_value
from hpc_dynamo.errors import ConfigError


def user_options(engine: Engine) -> dict[str, Any]:
    """Return `engine.args` by the names of the command line, with dashes."""
    return {name.replace("_", "-"): value for name, value in engine.args.items()}


def command_line(args: Mapping[str, Any]) -> list[str]:
    """Return the arguments for a mapping: `{max-model-len: 2048}` → `--max-model-len 2048`.

    True gives the flag, False its `--no-` form, None omits it. A mapping becomes JSON, a list
    several arguments. A text is one argument, except a JSON list for an option with
    several values.
    """
    out = list[str]()
    for name, written in args.items():
        option = name.replace("_", "-")
        value = json_list(written) if option in multi_value() else written
        match value:
            case None:
                continue
            case True:
                out.append(f"--{option}")
            case False:
                out.append(f"--no-{option}")
            case Mapping():
                out += [f"--{option}", json.dumps(value)]
            case list() | tuple():
                out += [f"--{option}", *map(str, value)]
            case _:
                out += [f"--{option}", str(value)]
    return out


def json_list(value: Any) -> Any:
    """Return the elements of a text that is a JSON list, with numbers as they were written. Any
    other value is returned unchanged."""
    if not (isinstance(value, str) and value.startswith("[")):
        return value
    try:
        found = json.loads(value, parse_int=str, parse_float=str)
    except ValueError:
        return value
    return [each if isinstance(each, str) else json.dumps(each) for each in found]


def positive_int(name: str, value: Any, default: int) -> int:
    """Return `value` as a positive integer, `default` if it is None. Raises ConfigError."""
    if value is None:
        return default
    if isinstance(value, bool) or not str(value).isdecimal() or not int(value):
        what = f"{name}={value} is not a whole number above zero"
        raise ConfigError(what, hint=f"{name}={default}, or leave it out")
    return int(value)


def positive_option(engine: Engine, name: str, default: int) -> int:
    """Return the option `name` of `engine.args` as a positive integer. Raises ConfigError."""
    return positive_int(f"engine.args.{name}", user_options(engine).get(name), default)


def sequences_per_rank(engine: Engine, ranks: int) -> int:
    """Return the share of one data-parallel rank in `engine.max_num_seqs`, which counts a worker.

    It is rounded up. The limits of vLLM 0.32 (config/scheduler.py) and TensorRT-LLM count each
    rank. SGLang 0.5.23 divides its own among the ranks of data-parallel attention
    (model_executor/pool_configurator.py), but not among the replicas of dp-size.
    """
    return -(-engine.max_num_seqs // ranks)
