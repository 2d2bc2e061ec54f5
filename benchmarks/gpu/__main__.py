"""Check hpc_dynamo on a machine with one NVIDIA GPU, PyTorch and no network.

    python3 -m benchmarks.gpu --wheels FOLDER --out FOLDER

It takes less than eight minutes (--limit-s). `--wheels` has the wheels of hpc_dynamo's packages, of
NIXL, and if real engines are to run, of vLLM. benchmarks/results/gpu.md has the commands that
download them on a machine with network access.

The parts, each with a log in `--out`; one that fails does not stop the others:

    install   an environment with the wheels, which also sees the machine's PyTorch
    nixl      pulls from GPU memory, in percent of a copy device to device (benchmarks.kv)
    binding   a worker's environment shows it its own GPU; that of a CPU worker shows none
    doctor    hpc-dynamo doctor with engine.device=cuda
    vllm      a batch through a prefill and a decode worker of vLLM, two processes on the GPU

Without a GPU these parts are skipped. `results.json` has the outcome of each part. The exit code is
1 if a part failed. Standard library only: it runs before anything is installed.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu import parts
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.parts import Outcome, Skipped

PARTS: dict[str, Callable[[Machine], str]] = {
    "install": parts.install,
    "nixl": parts.nixl,
    "binding": parts.binding,
    "doctor": parts.doctor,
    "vllm": parts.vllm,
}


def main() -> int:
    args = _parser().parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    machine = Machine(args.wheels.absolute(), args.out.absolute(), time.monotonic() + args.limit_s)
    print(f"GPUs: {', '.join(machine.gpus) or 'none'}; results in {machine.out}", flush=True)
    outcomes = {name: _outcome(name, PARTS[name], machine) for name in args.parts}
    written = {"gpus": machine.gpus, "parts": outcomes}
    (machine.out / "results.json").write_text(json.dumps(written, indent=1) + "\n")
    return int(any(outcome["state"] == "failed" for outcome in outcomes.values()))


def _outcome(name: str, part: Callable[[Machine], str], machine: Machine) -> Outcome:
    began = time.monotonic()
    try:
        state, text = "passed", part(machine)
    except Skipped as e:
        state, text = "skipped", str(e)
    except (OSError, parts.PartFailed) as e:
        state, text = "failed", str(e)
    took_s = round(time.monotonic() - began, 1)
    print(f"{name:<8} {took_s:>6.1f} s  {state}: {text}", flush=True)
    return {"state": state, "text": text, "seconds": took_s}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python3 -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--wheels", type=Path, default=Path("wheels"), metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="FOLDER")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    about = "time for all parts (450 s)"
    parser.add_argument("--limit-s", type=float, default=450.0, metavar="S", help=about)
    return parser


if __name__ == "__main__":
    sys.exit(main())
