"""Entry point that starts SGLang's server with the run's token: `python -m hpc_dynamo_sglang …`.

SGLang reads its key only from `--api-key`, and every user of a node can read command lines. So the
token comes through the environment and is passed to SGLang inside the process. This file runs in
the engine's environment and may need only the standard library.

Source: sglang/launch_server.py, which reads `sys.argv`.
"""

import os
import runpy
import sys

if __name__ == "__main__":
    sys.argv += ["--api-key", os.environ["HPC_DYNAMO_ENGINE_KEY"]]
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
