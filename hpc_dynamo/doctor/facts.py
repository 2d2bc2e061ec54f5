"""Collection of facts about this node. Every program that is run has a deadline."""

import os
import resource
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hpc_dynamo.config import BootstrapMethod, Cluster, Config, Container, ContainerKind, Engine
from hpc_dynamo.doctor.records import NodeFacts
from hpc_dynamo.engines import ENGINES
from hpc_dynamo.launch import bootstrap_step
from hpc_dynamo.launch.mpi_step import step_environment
from hpc_dynamo.model_files import check_models, model_source
from hpc_dynamo.process.child import clean_environment
from hpc_dynamo.topology import Plan

PROGRAM_TIMEOUT_S = 60.0  # a program may start from a slow shared disk
READ_S, READ_BYTES, CHUNK_BYTES = 3.0, 1 << 30, 16 << 20
LOCAL_TASK_VARIABLE = "SUBMITIT_LOCAL_GLOBALID"  # set in tasks of cluster.launcher=local


def preflight_facts(config: Config, gpus: int, address: str, host: str) -> NodeFacts:
    """Return the facts that are collected in milliseconds. The plan needs `gpus` of this node."""
    return NodeFacts(
        host=host,
        local=LOCAL_TASK_VARIABLE in os.environ,
        shm_free=_free("/dev/shm"),
        tmp_free=_free("/tmp"),
        nofile=_limit(resource.RLIMIT_NOFILE),
        memlock=_limit(resource.RLIMIT_MEMLOCK),
        port_error=port_error(address),
        model_problems=check_models(config, os.environ, on_node=True),
        gpus_wanted=gpus,
        gpus_visible=visible_gpus(),
    )


def planned_gpus(plan: Plan, node: int) -> int:
    """Return the number of GPUs of a node that the layout puts workers on."""
    return sum(len(s.gpus) for w in plan.workers for s in w.shards if s.node == node)


def local_model(config: Config) -> Path | None:
    """Return the first model that is readable here: a folder, or in the Hugging Face cache."""
    sources = (model_source(own, os.environ) for own in config.by_model.values() if own.model.path)
    return next((source.path for source in sources if source.path), None)


def _exists(path: str) -> bool:
    return Path(path).expanduser().exists()


def _free(folder: str) -> int:
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return 0


def _limit(which: int) -> int:
    soft = resource.getrlimit(which)[0]
    return -1 if soft == resource.RLIM_INFINITY else soft


def port_error(address: str) -> str:
    """Return why no port of `address` can be bound, or an empty text."""
    try:
        socket.create_server((address, 0)).close()
    except OSError as e:
        return f"{address}: {e.strerror or e}"
    return ""


def visible_gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that an engine started here would see."""
    if LOCAL_TASK_VARIABLE in os.environ:  # set by hpc-dynamo itself
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return tuple(name for name in named.split(",") if name)[: _present()]
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if name in os.environ:
            return tuple(g for g in os.environ[name].split(",") if g)
    count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return tuple(map(str, range(count)))


def _present() -> int:
    """Return the number of NVIDIA or AMD GPUs of this machine."""
    nvidia = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    amd = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")
    return nvidia or sum(_text(file) not in ("", "0") for file in amd) or len(driver_gpus() or ())


def _text(file: Path) -> str:
    with suppress(OSError):
        return file.read_text().strip()
    return ""


def driver_gpus() -> tuple[str, ...] | None:
    """Return the GPUs that nvidia-smi lists, None without nvidia-smi."""
    try:
        done = _run(["nvidia-smi", "-L"])
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(line for line in done.stdout.splitlines() if line.startswith("GPU "))


def rdma_devices() -> tuple[str, ...]:
    return tuple(sorted(p.name for p in Path("/sys/class/infiniband").glob("*")))


def model_read_gb_s(root: Path | None) -> float | None:
    """Return the read speed of the largest file, None without a large file.

    The kernel is advised to drop cached pages first.
    """
    if root is None:
        return None
    files = [root] if root.is_file() else [p for p in root.glob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size, default=None)
    if largest is None or largest.stat().st_size < CHUNK_BYTES:
        return None
    handle, size, began = os.open(largest, os.O_RDONLY), 0, time.monotonic()
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        while size < READ_BYTES and time.monotonic() - began < READ_S:
            read = len(os.read(handle, CHUNK_BYTES))
            if not read:
                break
            size += read
    finally:
        os.close(handle)
    return size / (time.monotonic() - began) / 1e9


def run_folder_error(folder: Path) -> str:
    """Return why this node cannot write there, or an empty text."""
    file = folder / f".doctor-{secrets.token_hex(6)}"
    try:
        file.write_bytes(b"x")
        file.unlink()
    except OSError as e:
        return f"{folder} cannot be written: {e.strerror or e}"
    return ""


def engine_error(engine: Engine) -> str:
    """Return why the engine cannot start with its interpreter, or an empty text.

    The inside of a container is not checked.
    """
    if in_container(engine):
        return _container_error(engine.container)
    modules = ENGINES[engine.name].python_modules
    return _python_error(engine.python or sys.executable, modules, engine.env)


def in_container(engine: Engine) -> bool:
    return engine.container.kind is not ContainerKind.none


def _container_error(container: Container) -> str:
    """Return an error of the program or of an image file. Other image names are not checked."""
    if container.kind is ContainerKind.pyxis:
        if error := _pyxis_error():
            return error
    elif not shutil.which(container.kind.program):
        return f"{container.kind.program} is not on PATH"
    missing = container.image.startswith("/") and not _exists(container.image)
    return f"engine.container.image={container.image} is not there" if missing else ""


def _pyxis_error() -> str:
    """Return an error if the help of srun does not list the options of the Pyxis plugin."""
    try:
        found = "--container-image" in _run(["srun", "--help"], step_environment({})).stdout
    except (OSError, subprocess.SubprocessError) as e:
        return f"srun cannot be run: {e}"
    return "" if found else "srun has no --container-image: Pyxis is not in this node's Slurm"


def _python_error(python: str, modules: Sequence[str], env: Mapping[str, str]) -> str:
    """Return why an interpreter lacks one of these modules, or an empty text."""
    found = f"all(map(importlib.util.find_spec, {modules!r}))"
    code = f"import importlib.util, sys; sys.exit(0 if {found} else 7)"
    try:
        done = _run([python, "-c", code], env)
    except subprocess.TimeoutExpired:
        return f"{python} did not answer in {PROGRAM_TIMEOUT_S:.0f} s"
    except OSError as e:
        return f"{python} cannot be run: {e.strerror or e}"
    if done.returncode == 7:
        return f"no module {' with '.join(modules)} for {python}"
    last = done.stderr.strip().splitlines()[-1:]
    return f"{python} failed: {' '.join(last)}" if done.returncode else ""


def mpi_version(python: str) -> str:
    """Return the version of the library that mpi4py finds, without MPI_Init; empty without one."""
    code = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; "
    code += "print(MPI.Get_library_version().split(',')[0].splitlines()[0])"
    with suppress(OSError, subprocess.SubprocessError):
        return _run([python, "-c", code]).stdout.strip()
    return ""


def mpi_error(cluster: Cluster) -> str:
    """Return why MPI cannot be tried here; empty if it can, or is not configured."""
    wanted = cluster.bootstrap.method is BootstrapMethod.mpi
    return bootstrap_step.unavailable(cluster) if wanted else ""


def _run(
    argv: Sequence[str], env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    env = clean_environment(env or {})
    return subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False
    )
