"""A container around each engine: what it is made of, and what cannot work."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hpc_dynamo.errors import ConfigError, quoted_override


class ContainerKind(StrEnum):
    """What runs an engine's command inside an image."""

    none = "none"
    apptainer = "apptainer"
    enroot = "enroot"  # also on clusters with Pyxis, which is a front to it
    pyxis = "pyxis"  # `srun --container-image`: each engine is a step of Slurm's


@dataclass(frozen=True)
class Container:
    """Our agents stay outside; engines see their image, the model and these mounts."""

    kind: ContainerKind = ContainerKind.none
    image: str = ""  # a file that every node sees; Apptainer and Pyxis also fetch docker://…
    mounts: tuple[str, ...] = ()  # further ones: SRC, SRC:DST or SRC:DST:ro
    options: tuple[str, ...] = ()  # further ones of `apptainer exec`, `enroot start` or `srun`


# What no program can quote: all cut at colons, Apptainer and Pyxis at commas, Enroot at spaces.
_UNQUOTED = re.compile(r"[:,\s]")
_MOUNT = re.compile(r"/[^:,\s]*(:/[^:,\s]*(:r[ow])?)?")


def check_container(container: Container, paths: dict[str, str]) -> None:
    """`paths` by field are mounted too. Raises ConfigError."""
    kind, image = container.kind, container.image
    if kind is ContainerKind.none:
        if image:
            what = f"engine.container.image={image} needs a kind that runs it"
            raise ConfigError(what, hint="engine.container.kind=apptainer; or enroot, pyxis")
        return
    if not image:
        what = f"engine.container.image is not set, and kind={kind} needs one"
        raise ConfigError(what, hint=f"engine.container.image=/shared/vllm.{_SUFFIX[kind]}")
    if kind is ContainerKind.enroot and re.search(r"://|#", image):
        what = f"engine.container.image={image}: Enroot starts files, it does not fetch"
        hint = f"enroot import -o /shared/engine.sqsh {_uri(image)}, then that file"
        raise ConfigError(what, hint=hint)
    if kind is ContainerKind.pyxis and image.endswith(".sqsh") and not image.startswith("/"):
        what = f"engine.container.image={image}: Pyxis would look for that in a registry"
        raise ConfigError(
            what, hint=quoted_override("engine.container.image", Path(image).absolute())
        )
    _check_paths(container.mounts, paths)


_SUFFIX = {
    ContainerKind.apptainer: "sif",
    ContainerKind.enroot: "sqsh",
    ContainerKind.pyxis: "sqsh",
}


def _uri(image: str) -> str:
    return image if "://" in image else f"docker://{image}"


def _check_paths(mounts: tuple[str, ...], paths: dict[str, str]) -> None:
    for mount in mounts:
        if not _MOUNT.fullmatch(mount):
            what = f"engine.container.mounts: {mount} is not SRC, SRC:DST or SRC:DST:ro"
            raise ConfigError(what, hint="engine.container.mounts=/scratch:/scratch")
    for field, path in paths.items():
        if _UNQUOTED.search(path):
            what = f"{field}={path} cannot be mounted into a container"
            raise ConfigError(what, hint="a path without spaces, colons and commas")
        if path and not path.startswith("/") and Path(path).is_dir():  # else it is a hub's id
            what = f"{field}={path} is relative to a folder that a container does not know"
            raise ConfigError(what, hint=quoted_override(field, Path(path).absolute()))
