"""A small container image from this machine's files: Python, its libraries and a shell.

It is a folder. It needs no registry and no network. Packages are not in it: tests mount them.
"""

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
FOLDERS = (
    "dev",
    "etc",
    "home",
    "lib",
    "lib64",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "var/tmp",
)
USERS = {"passwd": "root:x:0:0:root:/root:/bin/sh\n", "group": "root:x:0:\n"}
# ch-run mounts the host's files here, and Podman its own.
MOUNT_POINTS = ("hosts", "resolv.conf")
UNUSED = (
    "test",
    "tests",
    "*-packages",
    "config-*",
    "idlelib",
    "ensurepip",
    "__pycache__",
    "tkinter",
)
# Imports everything that the engine needs, then lists the libraries of this process.
LIBRARIES = """
import bz2, ctypes, hashlib, lzma, mmap, os, ssl, zlib
import hpc_dynamo.simulator.server
from hpc_dynamo.kv.agent import KvAgent
pool = mmap.mmap(-1, 4096)
agent = KvAgent("x", pool, 4096)
maps = open("/proc/self/maps")
print(*{line.split()[-1] for line in maps if ".so" in line}, sep="\\n", flush=True)
os._exit(0)  # NIXL is not ended in order
"""


def build_image(folder: Path, owner: int) -> None:
    """Write the image. It belongs to `owner`, as Podman requires of a folder."""
    for name in (*FOLDERS, "bin", "usr/bin", "opt/python/bin", "opt/python/lib"):
        (folder / name).mkdir(parents=True)
    for name, text in (*USERS.items(), *((name, "") for name in MOUNT_POINTS)):
        (folder / "etc" / name).write_text(text)
    _copy_python(folder)
    shutil.copy2("/bin/sh", folder / "bin/sh")
    for library in _libraries():
        shutil.copy2(library, folder / ("lib64" if "ld-linux" in library.name else "lib"))
    subprocess.run(("chown", "--recursive", f"{owner}:{owner}", folder), check=True)


def _copy_python(folder: Path) -> None:
    """Copy the interpreter and its standard library; `python3` is on the image's PATH."""
    base = {"installed_base": sys.base_prefix}
    library = Path(sysconfig.get_path("stdlib", vars=base))
    into = folder / "opt/python"
    shutil.copy2(f"{sys.base_prefix}/bin/{PYTHON}", into / "bin/python3")
    ignored = shutil.ignore_patterns(*UNUSED)
    shutil.copytree(library, into / "lib" / PYTHON, ignore=ignored, symlinks=True)
    (folder / "usr/bin/python3").symlink_to("/opt/python/bin/python3")


def _libraries() -> Iterator[Path]:
    """Yield the system's libraries that the engine, its interpreter and the shell load."""
    argv = [sys.executable, "-c", LIBRARIES]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    listed = subprocess.run(("ldd", "/bin/sh"), capture_output=True, text=True, check=True).stdout
    words = {word for word in listed.split() if word.startswith("/")}
    for path in map(Path, sorted({*loaded, *words})):
        if not {"site-packages", "lib-dynload"} & set(path.parts):
            yield from _names(path.resolve())


def _names(library: Path) -> Iterator[Path]:
    """Yield a library and the links to it: programs name the link of its major version."""
    same = library.parent.glob(f"{library.name.partition('.so')[0]}.so*")
    yield from (path for path in same if path.resolve() == library)
