"""Checks of `engine.container`."""

import re
from pathlib import Path

from hpc_dynamo.config.schema.engine import Container, ContainerKind
from hpc_dynamo.errors import ConfigError, quoted_override

# Characters that cannot be quoted in a mount: all runtimes split it at colons, Apptainer and Pyxis
# also at commas, Enroot at spaces.
_UNQUOTED = re.compile(r"[:,\s]")
_MOUNT = re.compile(r"/[^:,\s]*(:/[^:,\s]*(:r[ow])?)?")
_EXAMPLES = {
    ContainerKind.apptainer: "/shared/vllm.sif",
    ContainerKind.charliecloud: "/shared/vllm.sqfs",
    ContainerKind.enroot: "/shared/vllm.sqsh",
    ContainerKind.podman: "/shared/vllm",
    ContainerKind.pyxis: "/shared/vllm.sqsh",
}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".sif", ".sqsh", ".sqfs", ".squashfs")


def check_container(container: Container, paths: dict[str, str]) -> None:
    """Check the image and all mounts. `paths` are mounted too, by the name of their field."""
    kind, image = container.kind, container.image
    if kind is ContainerKind.none:
        if image:
            what = f"engine.container.image={image} needs a container runtime"
            raise ConfigError(what, hint=f"engine.container.kind={' or '.join(_EXAMPLES)}")
        return
    if not image:
        what = f"engine.container.image is not set, and kind={kind} needs one"
        raise ConfigError(what, hint=f"engine.container.image={_EXAMPLES[kind]}")
    _check_image(kind, image)
    _check_paths(container.mounts, paths)
    read_only = [mount for mount in container.mounts if mount.endswith(":ro")]
    if kind is ContainerKind.charliecloud and read_only:
        what = f"engine.container.mounts: {read_only[0]}: Charliecloud mounts nothing read-only"
        raise ConfigError(what, hint=f"engine.container.mounts={read_only[0].removesuffix(':ro')}")


def _check_image(kind: ContainerKind, image: str) -> None:
    """Raise ConfigError for an image that the runtime cannot start, or would have to download."""
    if kind is ContainerKind.enroot and re.search(r"://|#", image):
        what = f"engine.container.image={image}: Enroot starts files, it does not download"
        uri = image if "://" in image else f"docker://{image}"
        hint = f"enroot import -o /shared/engine.sqsh {uri}, then that file"
        raise ConfigError(what, hint=hint)
    if kind is ContainerKind.charliecloud and "://" in image:
        name = image.partition("://")[2]
        what = f"engine.container.image={image}: ch-run starts files and folders, no URLs"
        hint = f"ch-image pull {name}, ch-convert {name} /shared/engine.sqfs, then that file"
        raise ConfigError(what, hint=hint)
    if kind is ContainerKind.podman and (image[:1] != "/" or image.endswith(_ARCHIVES)):
        what = f"engine.container.image={image} is not the absolute path of a folder"
        hint = "podman create --name x IMAGE; podman export x | tar -x -C /shared/vllm; that folder"
        raise ConfigError(what, hint=hint)
    if kind is ContainerKind.pyxis and image.endswith(".sqsh") and not image.startswith("/"):
        what = f"engine.container.image={image}: Pyxis would look for that in a registry"
        hint = quoted_override("engine.container.image", Path(image).absolute())
        raise ConfigError(what, hint=hint)


def _check_paths(mounts: tuple[str, ...], paths: dict[str, str]) -> None:
    for mount in mounts:
        if not _MOUNT.fullmatch(mount):
            what = f"engine.container.mounts: {mount} is not SRC, SRC:DST or SRC:DST:ro"
            raise ConfigError(what, hint="engine.container.mounts=/scratch:/scratch")
    for field, path in paths.items():
        if _UNQUOTED.search(path):
            what = f"{field}={path} cannot be mounted into a container"
            raise ConfigError(what, hint="a path without spaces, colons and commas")
        is_local = path and not path.startswith("/") and Path(path).is_dir()  # else a hub id
        if is_local:
            what = f"{field}={path} is relative to a folder that does not exist in the container"
            raise ConfigError(what, hint=quoted_override(field, Path(path).absolute()))
