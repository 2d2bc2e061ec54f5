"""Python environments of the peers with pinned versions, installed once into the cache."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from hpc_dynamo.demo.engine_environment import cache_dir
from hpc_dynamo.demo.steps import (
    InstallProgress,
    InstallStep,
    exclusive_lock,
    require_free_disk,
    run_steps,
)
from hpc_dynamo.errors import MissingDependency

DYNAMO = "1.6.1"
VLLM_ROUTER, SGLANG_ROUTER = "0.1.17", "0.3.2"
# Imports of Dynamo's frontend and mocker. Its wheels require more packages, which not every index
# has (aisimulate) and neither program needs. Hence --no-deps and this list.
DYNAMO_NEEDS = (
    *("aiohttp", "msgspec", "prometheus-client", "pyzmq", "transformers<5.20", "tqdm"),
    *("zstandard", "uvloop", "redis<9", "kubernetes<33"),
)
# Additional imports of its planner, which also requires the unavailable AISimulate.
PLANNER_NEEDS = (
    *("scikit-learn", "pandas>=2,<4", "pmdarima>=2.1,<3", "filterpy", "prophet>=1.1,<2"),
    *("grpcio", "protobuf", "plotly", "prometheus-api-client", "pydantic>=2", "pyyaml"),
)
DISK_GB = 1.5
PROGRAMS = {"wrk": "wrk", "nginx": "nginx"}  # program: Debian package


@dataclass(frozen=True)
class Environments:
    """Virtual environments of the peers."""

    dynamo: Path
    routers: Path


def environments() -> Environments:
    """Install what is missing.

    Raises MissingDependency without wrk or nginx, HpcDynamoError with step, log and hint if pip
    fails.
    """
    need_programs()
    envs = Environments(dynamo(), cache_dir() / f"routers-{_version()}")
    install(envs.routers, _routers(envs.routers), InstallProgress())
    return envs


def dynamo() -> Path:
    """Return only Dynamo's environment. Raises like `environments`."""
    env = cache_dir() / f"dynamo-{DYNAMO}-{_version()}"
    install(env, _dynamo(env), InstallProgress())
    return env


def dynamo_planner() -> Path:
    """Return Dynamo's environment with its planner. Raises like `environments`."""
    env = cache_dir() / f"dynamo-{DYNAMO}-{_version()}"
    install(
        env,
        [*_dynamo(env), InstallStep("planner", (_pip(env, *PLANNER_NEEDS),))],
        InstallProgress(),
    )
    return env


def _version() -> str:
    return f"py{sys.version_info.major}.{sys.version_info.minor}"


def need_programs() -> None:
    """Raises MissingDependency with the command that installs missing programs."""
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name)]
    if missing:
        what = f"not installed: {', '.join(missing)}"
        raise MissingDependency(what, hint=f"apt-get install --yes {' '.join(missing)}")


def install(env: Path, steps: list[InstallStep], progress: InstallProgress) -> None:
    """Run the steps that are not done yet."""
    state = env.with_name(f"{env.name}.install")
    state.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(state, progress):
        if not (env / "bin/python").exists():
            require_free_disk(state, DISK_GB)
            for stamp in state.glob("*.done"):
                stamp.unlink()
        run_steps(steps, state, progress)


def _dynamo(env: Path) -> list[InstallStep]:
    wheels = (f"ai-dynamo=={DYNAMO}", f"ai-dynamo-runtime=={DYNAMO}")
    return [
        _environment(env),
        InstallStep("dynamo", (_pip(env, "--no-deps", *wheels), _pip(env, *DYNAMO_NEEDS))),
    ]


def _routers(env: Path) -> list[InstallStep]:
    packages = (f"vllm-router=={VLLM_ROUTER}", f"sglang-router=={SGLANG_ROUTER}")
    return [_environment(env), InstallStep("routers", (_pip(env, *packages),))]


def _environment(env: Path) -> InstallStep:
    return InstallStep("environment", ((sys.executable, "-m", "venv", str(env)),))


def _pip(env: Path, *words: str) -> tuple[str, ...]:
    pip = (str(env / "bin/python"), "-m", "pip", "--disable-pip-version-check", "install")
    return (*pip, "--progress-bar", "off", *words)
