"""Placeholders for CUDA packages that SGLang imports: `python cuda_placeholders.py SITE`.

Installs itself into SITE (site-packages) with a `.pth` file that imports it at every start of the
interpreter. It may need only the standard library.

SGLang 0.5.23 imports torchvision, torchaudio and sgl_kernel when it starts, also with `--device
cpu`. Their builds are for CUDA or for processors with AMX and do not load elsewhere. A text model
on CPUs calls nothing of them. A placeholder has every attribute, as a class that does nothing when
it is inherited or instantiated, and raises RuntimeError when an instance is called.
"""

import importlib.abc
import importlib.machinery
import shutil
import sys
import types
from pathlib import Path
from typing import Any

PACKAGES = frozenset({"torchvision", "torchaudio", "sgl_kernel"})
MODULE = "hpc_dynamo_cuda_placeholders"


class PlaceholderType(type):
    """Type of placeholder classes: every attribute is another placeholder class."""

    def __getattr__(cls, name: str) -> Any:
        return _placeholder(f"{cls.__name__}.{name}")


class PlaceholderModule(types.ModuleType):
    """Module whose every attribute is a placeholder class."""

    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        found = _placeholder(f"{self.__name__}.{name}")
        setattr(self, name, found)
        return found


def _placeholder(name: str) -> type:
    """Return a new class. Raises AttributeError for special names, which Python itself looks up."""
    if name.rpartition(".")[2].startswith("__"):
        raise AttributeError(name)

    def init(self: object, *args: Any, **more: Any) -> None:
        pass

    def call(self: object, *args: Any, **more: Any) -> None:
        raise RuntimeError(f"{name} was called, but only a placeholder of it is installed")

    return PlaceholderType(name, (), {"__init__": init, "__call__": call})


class PlaceholderFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages and all their modules, unless the real package is installed."""

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in PACKAGES:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return PlaceholderModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install(site: Path) -> None:
    """Copy this file into `site` and let each interpreter import it."""
    shutil.copyfile(__file__, site / f"{MODULE}.py")
    (site / f"{MODULE}.pth").write_text(f"import {MODULE}\n")


if __name__ == "__main__":
    install(Path(sys.argv[1]))
elif __name__ == MODULE:
    sys.meta_path.append(PlaceholderFinder())
