"""The CPU build of vLLM for tests, as installed by `make demo` and `make test`."""

import os

import pytest

from hpc_dynamo.demo.provision import DemoEngine, InstallPaths, cache_dir, provision


def provisioned() -> DemoEngine:
    """Return the installed vLLM and model; skip the test if they are not installed.

    With `vllm` among the words of HPC_DYNAMO_REQUIRE the test fails instead.
    """
    if not InstallPaths(cache_dir()).complete:
        required = "vllm" in os.environ.get("HPC_DYNAMO_REQUIRE", "").split()
        (pytest.fail if required else pytest.skip)("vLLM is not installed: make demo installs it")
    return provision()
