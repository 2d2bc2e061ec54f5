"""Installation of SGLang for CPUs and a small model into the cache of `provision`.

    python -m hpc_dynamo.demo.provision_sglang

SGLang has no build for CPUs. Its normal wheel serves text models on CPUs with PyTorch's CPU build,
without its packages of CUDA kernels (sglang_packages.txt, cuda_placeholders.py, edit_packages.py).
Packages that vLLM's environment has in the same version are shared with it.
"""

import sys

from hpc_dynamo.demo.engine_environment import (
    HERE,
    MODEL_GB,
    TORCH,
    DemoEngine,
    InstallPaths,
    cache_dir,
    check_machine,
    environment_step,
    model_step,
    pip_install,
    print_installed,
    script,
    torch_step,
)
from hpc_dynamo.demo.provision import vllm_paths
from hpc_dynamo.demo.steps import (
    InstallProgress,
    InstallStep,
    exclusive_lock,
    require_free_disk,
    run_steps,
)

SGLANG = "0.5.23"
PACKAGES = HERE / "sglang_packages.txt"
DISK_GB = 4.5  # free space for everything, without shared packages


def sglang_paths() -> InstallPaths:
    return InstallPaths(cache_dir(), f"sglang-cpu-{SGLANG}")


def provision_sglang(progress: InstallProgress | None = None) -> DemoEngine:
    """Install missing parts. Uses the model of vLLM's environment if there is one.

    Raises UsageError on a machine without wheels. If a step fails, raises HpcDynamoError with the
    step, its log and a hint.
    """
    paths, vllm, progress = sglang_paths(), vllm_paths(), progress or InstallProgress()
    check_machine("SGLang")
    paths.make_folders()
    vllm.make_folders()
    # The lock of vLLM as well: packages are linked from its environment, and the model is shared.
    with exclusive_lock(vllm.state, progress), exclusive_lock(paths.state, progress):
        if not paths.python.exists():
            _prepare(paths)
            progress.line(f"installing SGLang {SGLANG} into {paths.env} (once, a few minutes)")
        run_steps(install_steps(paths, vllm), paths.state, progress)
        if not vllm.complete:
            _provide_model(paths, progress)
    return DemoEngine(paths.python, paths.model, "sglang-cpu")


def install_steps(paths: InstallPaths, vllm: InstallPaths) -> list[InstallStep]:
    """Return the steps that create the engine environment."""
    share = ("share_packages.py", str(vllm.site), str(paths.site), str(PACKAGES), TORCH)
    return [
        environment_step(paths),
        InstallStep("shared", (script(paths, *share),)),
        torch_step(paths, "--no-deps"),
        InstallStep("packages", (pip_install(paths, "--no-deps", "-r", str(PACKAGES)),)),
        InstallStep(
            "edits",
            (
                script(paths, "edit_packages.py", "sglang", str(paths.site)),
                script(paths, "cuda_placeholders.py", str(paths.site)),
            ),
        ),
    ]


def _provide_model(paths: InstallPaths, progress: InstallProgress) -> None:
    """Create the model. Its stamp is separate: a change of the environment does not repeat it."""
    state = paths.state / "model"
    state.mkdir(exist_ok=True)
    if not paths.model.exists():
        (state / "model.done").unlink(missing_ok=True)
        require_free_disk(paths.cache, MODEL_GB)
    run_steps([model_step(paths)], state, progress)


def _prepare(paths: InstallPaths) -> None:
    """Forget steps whose results were removed. Raises HpcDynamoError if the disk is too full."""
    for stamp in paths.state.glob("*.done"):
        stamp.unlink()
    require_free_disk(paths.cache, DISK_GB)


if __name__ == "__main__":
    sys.exit(print_installed(provision_sglang))
