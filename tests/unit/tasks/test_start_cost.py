"""Modules that the task of a node loads. Each start on a cluster pays for them."""

import json
import subprocess
import sys

UNWANTED = ("numpy", "hpc_dynamo.head.head", "hpc_dynamo.router", "hpc_dynamo.frontend", "hydra")
LOADED = f"""
import json, sys
from hpc_dynamo.launch.submitit_task import submitit_entry
submitit_entry()
import hpc_dynamo.tasks.node, hpc_dynamo.tasks.join
print(json.dumps([name for name in {UNWANTED} if name in sys.modules]))
import numpy
"""


def test_task_of_a_node_loads_neither_the_head_nor_numpy() -> None:
    """A program of the task that needs NumPy can still import it."""
    argv = [sys.executable, "-c", LOADED]
    assert json.loads(subprocess.check_output(argv, text=True)) == []
