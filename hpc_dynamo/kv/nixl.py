"""Import of the NIXL wheel that is installed."""

import importlib
from typing import Any

from hpc_dynamo.errors import MissingDependency

INSTALL = "pip install --no-deps nixl-cu12 numpy (with CUDA 13: nixl-cu13)"
WHEELS = ("nixl_cu12", "nixl_cu13", "nixl")  # same API; work without CUDA, in host memory


def load_nixl() -> Any:
    """Return the Python API of an installed NIXL wheel. Raises MissingDependency.

    Call it on first use: the import takes half a second, and most processes never need it.
    """
    for wheel in WHEELS:
        try:
            return importlib.import_module(f"{wheel}._api")
        except ModuleNotFoundError as e:
            if e.name not in (wheel, f"{wheel}._api"):
                raise MissingDependency(f"{wheel} lacks {e.name}", hint=INSTALL) from e
    raise MissingDependency("NIXL is not installed", hint=INSTALL)
