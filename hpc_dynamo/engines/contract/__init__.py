"""Options of the engines' servers, one file for each recorded version: `ENGINE-VERSION.json`.

The files are written by tools/record_options.py and tools/record_trtllm.py. Tests compare them with
the parsers of the engines that are installed.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import msgspec

FOLDER = Path(__file__).parent


class RecordedOption(msgspec.Struct, frozen=True):
    """One option of an engine's server."""

    kind: str  # flag, value or list (several values)
    aliases: tuple[str, ...] = ()  # other names, `--no-…` included
    choices: tuple[str, ...] = ()


class Contract(msgspec.Struct, frozen=True):
    """Options and fields of one version of an engine."""

    engine: str
    version: str
    source: str  # origin of the record
    options: dict[str, RecordedOption]  # by the first name, with dashes
    fields: dict[str, tuple[str, ...]] = {}  # fields of JSON options and of requests, by class
    metrics: tuple[str, ...] = ()
    # Kinds of media with which a prefill and a decode worker can share a request.
    disaggregated_media: tuple[str, ...] = ()

    def by_name(self) -> dict[str, RecordedOption]:
        """Return the options by all their names."""
        return {n: option for own, option in self.options.items() for n in (own, *option.aliases)}


@cache
def contracts(engine: str, version: str = "") -> tuple[Contract, ...]:
    """Return the records of an engine, oldest version first; empty for the simulator.

    With a version only those of the same minor version are returned, if there are any.
    """
    found = [
        msgspec.json.decode(path.read_bytes(), type=Contract)
        for path in FOLDER.glob(f"{engine}-*.json")
    ]
    same = [c for c in found if version_key(c.version) == version_key(version)]
    return tuple(sorted(same or found, key=lambda contract: version_key(contract.version)))


@cache
def disaggregated_media(engine: str, version: str = "") -> frozenset[str]:
    """Return the kinds of media with which two workers of any of these versions share a request."""
    kinds = [frozenset(contract.disaggregated_media) for contract in contracts(engine, version)]
    return frozenset.intersection(*kinds) if kinds else frozenset()


def version_key(version: str) -> tuple[int, ...]:
    """Return major and minor version, for comparisons: 1.4.0rc1 → (1, 4). Empty: ()."""
    return tuple(int(number) for number in version.split(".")[:2] if number.isdecimal())


@cache
def option_names(engine: str, version: str = "") -> Mapping[str, str]:
    """Return every plain name of an option in these records, with the first name of the option:
    `tp` → `tensor-parallel-size`."""
    return {
        plain_name(name): plain_name(own)
        for contract in contracts(engine, version)
        for own, option in contract.options.items()
        for name in (own, *option.aliases)
    }


@cache
def long_names(engine: str, version: str = "") -> Mapping[str, str]:
    """Return the plain names of options that can follow two dashes on a command line, with their
    spelling there."""
    every = (name for contract in contracts(engine, version) for name in contract.by_name())
    return {plain_name(name): name for name in every if name.startswith("--")}


def plain_name(name: str) -> str:
    """Return the name of an option without dashes at its start, with dashes between its words."""
    return name.lstrip("-_").replace("_", "-")


def options_of_kind(kind: str) -> Iterator[str]:
    """Yield the long names of options of one kind, of vLLM and SGLang."""
    for contract in (*contracts("sglang"), *contracts("vllm")):
        for name, option in contract.by_name().items():
            if option.kind == kind and name.startswith("--"):
                yield plain_name(name)
