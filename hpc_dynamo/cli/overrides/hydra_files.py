"""Compose the files of `conf/` and of a folder of the user's own, through Hydra.

Hydra chooses and merges files: groups, lists of defaults, packages. It reads them through
`TextSource`, since its own loader would convert scalars by the rules of YAML 1.1. Values of
fields on the command line never pass through Hydra.

Import this module inside the function that composes: the import takes 0.2 s, and most verbs for an
existing run do not need it.
"""

import copy
import re
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpc_dynamo.cli.conf_folders import conf_dir
from hpc_dynamo.cli.overrides.file_limits import require_bounded_references
from hpc_dynamo.cli.overrides.files import Folders
from hpc_dynamo.cli.overrides.renamed import with_current_names
from hpc_dynamo.cli.overrides.yaml_text import Document, Keys, read
from hpc_dynamo.errors import ConfigError

SCHEME = "hpc-dynamo"
HEADER = re.compile(r"\s*#\s*@(?P<key>\w+)\s+(?P<value>\S+)\s*")
HEADER_CHARS = 512  # Hydra looks for a header in this many characters
PRIMARY = "config"

CURRENT: ContextVar[Folders] = ContextVar("folders of configuration files")


class TextSource(ConfigSource):
    """Hydra source for the current folders; the scalars of its files keep their text."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Read a file, with current names of fields. Raises ConfigLoadError if there is none."""
        folders = CURRENT.get()
        path = folders.file(config_path)
        if path is None:
            raise ConfigLoadError(f"no file {config_path}")
        header = _header(path)
        group = tuple(config_path.split("/")[:-1])
        document = with_current_names(read(path), _package(header["package"], group))
        folders.read.append(document)
        content = OmegaConf.create(document.content)
        return ConfigResult(self.provider, self.full_path(), content, header)

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return not config_path or CURRENT.get().has_group(config_path)

    def is_config(self, config_path: str) -> bool:
        return CURRENT.get().file(config_path) is not None

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the names of groups and files below a path."""
        groups = {
            entry.name
            for folder in CURRENT.get().folders
            for entry in (folder / config_path).glob("*")
            if entry.is_dir() and results_filter is not ObjectType.CONFIG
        }
        configs = set(CURRENT.get().choices(config_path))
        return sorted(groups | (configs if results_filter is not ObjectType.GROUP else set()))


class TextSearchPath(SearchPathPlugin):
    """Adds the current folders to Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if CURRENT.get(None) is not None:
            search_path.append(SCHEME, f"{SCHEME}://conf")


def _header(path: Path) -> dict[str, str | None]:
    """Return Hydra's header of a file, such as `# @package _global_`."""
    with path.open(encoding="utf-8") as file:
        lines = file.read(HEADER_CHARS).splitlines()
    matches = filter(None, map(HEADER.fullmatch, lines))
    return {"package": None} | {match["key"]: match["value"] for match in matches}


def _package(header: str | None, group: Keys) -> Keys:
    """Return the keys of the section that the content of a file belongs to."""
    if header is None or header == "_group_":
        return group
    return () if header == "_global_" else tuple(header.split("."))


def composed(folders: Folders, choices: Sequence[str]) -> dict[str, Any]:
    """Return the merged files, interpolations unresolved. `choices` are overrides in Hydra's syntax
    that name files. Appends the files to `folders.read`. Raises ConfigError."""
    built_in = folders.folders == (conf_dir(),)
    compose = _composed_once if built_in else _composed
    content, documents = compose(folders.folders, tuple(choices))
    folders.read += documents
    return copy.deepcopy(content)


def _composed(
    paths: tuple[Path, ...], choices: tuple[str, ...]
) -> tuple[dict[str, Any], list[Document]]:
    """Return the merged files and the files that were read."""
    for plugin in (TextSource, TextSearchPath):
        Plugins.instance().register(plugin)
    folders = Folders(paths)
    token = CURRENT.set(folders)
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", job_name="hpc_dynamo"):
            found = hydra_compose(PRIMARY, list(map(_for_hydra, choices)))
        content = OmegaConf.to_container(found, resolve=False)
    except (HydraException, OmegaConfBaseException, ValueError) as e:
        raise _explained(e, choices) from e
    finally:
        CURRENT.reset(token)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}, folders.read


# Files of the package do not change while a process runs. Several models often choose the same.
_composed_once = cache(_composed)


def _for_hydra(choice: str) -> str:
    """Quote the value of a choice as Hydra's grammar needs it."""
    key, is_, value = choice.partition("=")
    plain = value == "null" or value.startswith("[") or not is_
    return choice if plain else f"{key}='{value}'"


def _explained(error: Exception, choices: Sequence[str]) -> ConfigError:
    said = str(error).strip() or str(error.__cause__)
    reason = said.splitlines()[0]
    culprit = next((each for each in choices if each.lstrip("+~").partition("=")[0] in said), "")
    hint = f"+{culprit}" if culprit and "append to your default list" in said else ""
    return ConfigError(f"{culprit}: {reason}" if culprit else reason, hint=hint)


def resolved(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with its `${...}` replaced. Raises ConfigError."""
    require_bounded_references(tree)
    try:
        found = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except (OmegaConfBaseException, ValueError) as e:
        hint = "${FIELD} is replaced by that field's value; \\${ keeps the text"
        raise ConfigError(str(e).strip().splitlines()[0], hint=hint) from e
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
