"""Host folders that every container of an engine gets, at the same paths."""

from collections.abc import Iterator

from hpc_dynamo.config import Config
from hpc_dynamo.engines.adapter import Placement
from hpc_dynamo.engines.environment import INJECTED


def all_mounts(config: Config, placement: Placement) -> tuple[str, ...]:
    """Return SRC, SRC:DST or SRC:DST:ro of each mount: required ones, then those of the user."""
    return (*_required(config, placement), *config.engine.container.mounts)


def _required(config: Config, placement: Placement) -> Iterator[str]:
    """Yield the paths that a command may contain."""
    yield str(INJECTED)
    yield from filter(None, (placement.log_folder, placement.events_folder))
    paths = (config.model.path, *config.model.lora.values())
    yield from (path for path in paths if path.startswith("/"))


def with_destination(mount: str) -> str:
    """Return SRC:DST or SRC:DST:ro."""
    return mount if ":" in mount else f"{mount}:{mount}"
