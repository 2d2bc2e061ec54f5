"""Starts SGLang's server with the run's key: `python -m hpc_dynamo_sglang OPTION…`.

SGLang takes its key by `--api-key` alone, and everybody on a node can read command lines. Here it
comes by the environment and is given to SGLang inside the process. This file runs in the engine's
environment: it must need the standard library only.

Source: sglang/launch_server.py, which reads `sys.argv`.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    sys.argv += ["--api-key", os.environ["HPC_DYNAMO_ENGINE_KEY"]]
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
