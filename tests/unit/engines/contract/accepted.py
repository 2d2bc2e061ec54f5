"""Parts of a command line that an engine's own parser would reject, from its contract."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

import tools.record_options
from hpc_dynamo.engines.contract import Contract, contracts
from tests.support.runs import HANG_S


def newest(engine: str) -> Contract:
    return contracts(engine)[-1]


def rejected(contract: Contract, words: Iterable[str]) -> list[str]:
    """Return the options of a command line that the engine's parser would reject."""
    options, found, rest = contract.by_name(), list[str](), list(words)
    while rest:
        name, values = rest.pop(0), list[str]()
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        option = options.get(name)
        if option is None:
            found.append(f"{name} is not known")
            continue
        if (option.kind == "flag") is bool(values):
            found.append(f"{name} is given {values}")
        if option.choices and not {*values} <= {*option.choices}:
            found.append(f"{name} may not be {values}")
    return found


def recorded_now(engine: str, python: Path | str, folder: Path) -> Contract:
    """Return a new record of an installed engine."""
    argv = [str(python), tools.record_options.__file__, engine]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=folder, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    record = done.stdout[done.stdout.index('{"engine"') :]  # after messages of the engine
    return msgspec.json.decode(record, type=Contract)
