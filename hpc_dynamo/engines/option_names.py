"""Names of options, and the files in which adapters list them."""

from functools import cache
from pathlib import Path

from hpc_dynamo.engines.contract import options_of_kind


def read_names(file: Path) -> frozenset[str]:
    """Return the names in a file, separated by blanks. `#` starts a line that is a comment."""
    lines = file.read_text().splitlines()
    return frozenset(name for line in lines if line[:1] != "#" for name in line.split())


def tuning_options(adapter_file: str) -> frozenset[str]:
    """Return the names in `tuning_options.txt` in the folder of an adapter."""
    return read_names(Path(adapter_file).with_name("tuning_options.txt"))


@cache
def flags() -> frozenset[str]:
    """Return the options of vLLM and SGLang without a value."""
    return frozenset(options_of_kind("flag"))


@cache
def multi_value() -> frozenset[str]:
    """Return the options of vLLM and SGLang with several values."""
    return frozenset(options_of_kind("list"))


@cache
def values() -> frozenset[str]:
    """Return the options of vLLM and SGLang with one or several values."""
    return frozenset(options_of_kind("value")) | multi_value()
