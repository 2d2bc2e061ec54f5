"""The parts of the GPU check. Each returns one line for the table, or raises Skipped or PartFailed.

Standard library only: what needs more runs as a program of the installed environment.
"""

import json
import sys
from pathlib import Path
from typing import TypedDict

from benchmarks.gpu.machine import Machine, PartFailed, Skipped

__all__ = ["Outcome", "PartFailed", "Skipped", "binding", "doctor", "install", "nixl", "vllm"]

# The machine has PyTorch. These wheels are installed only with vLLM.
OF_VLLM = ("torch", "vllm", "nvidia_", "triton")


class Outcome(TypedDict):
    """Outcome of a part, as in results.json."""

    state: str  # passed, failed or skipped
    text: str
    seconds: float


def install(machine: Machine) -> str:
    """Make an environment from the wheels, without a network."""
    wheels = _wheels(machine, "*.whl")
    if machine.is_complete():
        return "not needed: this interpreter has all packages"
    if not wheels:
        raise PartFailed(f"--wheels: {machine.wheels} has no wheels, and packages are missing")
    folder = machine.out / "environment"
    venv = ("-m", "venv", "--system-site-packages", str(folder))
    machine.run("install", sys.executable, *venv, limit_s=60)
    python = str(folder / "bin/python")
    here = ("--no-index", f"--find-links={machine.wheels}")
    chosen = [wheel for wheel in wheels if not wheel.name.startswith(OF_VLLM)]
    argv = ("-m", "pip", "install", "--quiet", "--no-deps", *here, *map(str, chosen))
    machine.run("install", python, *argv, limit_s=120)
    machine.python = python
    return f"{len(chosen)} wheels"


def nixl(machine: Machine) -> str:
    """Measure pulls from GPU memory against the copy on the device."""
    machine.require_gpu()
    argv = ("-m", "benchmarks.kv", "--gpu", "--quick", "--repeats=5")
    output = machine.run("nixl", machine.python, *argv, limit_s=120)
    rows = [line.strip() for line in output.splitlines() if "Llama" in line]
    return " // ".join(rows) or output[-300:]


def binding(machine: Machine) -> str:
    """Start a program in the environment of each worker, and compare the GPUs that it sees."""
    machine.require_gpu()
    output = machine.run("binding", machine.python, "-m", "benchmarks.gpu.binding", limit_s=120)
    seen = json.loads(output.splitlines()[-1])
    if seen["workers"] != [[gpu] for gpu in machine.gpus] or seen["cpu"]:
        raise PartFailed(f"workers see {seen}; nvidia-smi lists {machine.gpus}")
    return f"{len(machine.gpus)} workers see one GPU each, a CPU worker none"


def doctor(machine: Machine) -> str:
    """Run the doctor for one worker on the GPU."""
    machine.require_gpu()
    report = machine.out / "doctor.json"
    words = ("engine=simulator", "engine.device=cuda", "cluster.launcher=local")
    layout = ("topology=aggregated", "cluster.gpus_per_node=1", f"runs_dir={machine.out}/runs")
    argv = ("-m", "hpc_dynamo", "doctor", "--json", str(report), *words, *layout)
    machine.run("doctor", machine.python, *argv, limit_s=120)
    return f"no fault; findings in {report}"


def vllm(machine: Machine) -> str:
    """Run a batch through a prefill and a decode worker of vLLM that share the GPU."""
    machine.require_gpu()
    if not (wheels := _wheels(machine, "vllm-*.whl")):
        raise Skipped(f"{machine.wheels} has no wheel of vLLM")
    here = ("--no-index", f"--find-links={machine.wheels}")
    argv = ("-m", "pip", "install", "--quiet", *here, str(wheels[0]))
    machine.run("vllm", machine.python, *argv, limit_s=150)
    model = machine.out / "model"
    machine.run("vllm", machine.python, "-m", "benchmarks.gpu.model", str(model), limit_s=60)
    # Two nodes of one GPU each, as agents on this machine: both use GPU 0.
    layout = ("topology=disaggregated", "topology.nodes=2", "cluster.gpus_per_node=1")
    memory = ("engine.args.gpu-memory-utilization=0.3", "engine.args.enforce-eager=true")
    words = ("engine=vllm", "cluster.launcher=local", f"model.path={model}", *layout, *memory)
    files = (f"input={model}/prompts.jsonl", "name=gpu", f"runs_dir={machine.out}/runs")
    batch = ("-m", "hpc_dynamo", "batch", *words, *files, "engine.args.max-model-len=2048")
    output = machine.run("vllm", machine.python, *batch, limit_s=300)
    wanted = ("requests", "KV bytes", "TTFT")
    return " // ".join(line.strip("│ \n") for line in output.splitlines() if _names(line, wanted))


def _names(line: str, wanted: tuple[str, ...]) -> bool:
    return line.startswith("│") and any(word in line for word in wanted)


def _wheels(machine: Machine, pattern: str) -> list[Path]:
    return sorted(machine.wheels.glob(pattern))
