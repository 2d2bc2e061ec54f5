"""Real engines for tests: vLLM as installed by `make demo` and `make test`, and SGLang as installed
by `make demo ENGINE=sglang`."""

from hpc_dynamo.demo.engine_environment import DemoEngine
from hpc_dynamo.demo.provision import provision, vllm_paths
from hpc_dynamo.demo.provision_sglang import provision_sglang, sglang_paths
from tests.support.requirements import skip_without


def provisioned() -> DemoEngine:
    """Return the installed vLLM and model; skip the test if they are not installed.

    With `vllm` among the words of HPC_DYNAMO_REQUIRE the test fails instead.
    """
    if not vllm_paths().complete:
        skip_without("vllm", "vLLM is not installed: make demo installs it")
    return provision()


def provisioned_sglang() -> DemoEngine:
    """Return the installed SGLang and model, like `provisioned`."""
    if not sglang_paths().complete:
        skip_without("sglang", "SGLang is not installed: make demo ENGINE=sglang installs it")
    return provision_sglang()
