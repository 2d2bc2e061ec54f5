"""The machine that the parts run on: its GPUs, its interpreter and the time that is left.

Standard library only.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
# Modules whose presence shows that the wheels need not be installed.
NEEDED = ("msgspec", "zmq", "omegaconf", "submitit", "rich")


class PartFailed(Exception):
    """A program of a part failed; the text has its end."""


class Skipped(Exception):
    """A part cannot run here; the text has the reason."""


@dataclass
class Machine:
    """Wheels, results, deadline (monotonic seconds), and the interpreter with the wheels."""

    wheels: Path
    out: Path
    deadline: float
    python: str = sys.executable
    gpus: list[str] = field(default_factory=lambda: gpu_ids())

    def require_gpu(self) -> None:
        """Raise Skipped without a GPU, or if PyTorch sees none."""
        if not self.gpus:
            raise Skipped("nvidia-smi lists no GPU on this machine")
        script = "import torch; assert torch.cuda.is_available()"
        done = subprocess.run([self.python, "-c", script], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Skipped(f"PyTorch sees no GPU: {last}")

    def run(self, name: str, *argv: str, limit_s: float) -> str:
        """Run a program, append its output to the log of the part, and return its output.

        It gets `limit_s`, or less if less time is left. Raises PartFailed, or Skipped without time.
        """
        left_s = min(limit_s, self.deadline - time.monotonic())
        if left_s < 1:
            raise Skipped("no time is left (--limit-s)")
        log = self.out / f"{name}.log"
        start = log.stat().st_size if log.exists() else 0
        command = ["timeout", "--kill-after=15", f"{left_s:.0f}", *argv]
        environment = {**os.environ, "PYTHONPATH": self._path(), "COLUMNS": "170"}
        with log.open("ab") as out:
            done = subprocess.run(command, stdout=out, stderr=out, cwd=self.out, env=environment)
        output = log.read_bytes()[start:].decode(errors="replace")
        if done.returncode:
            tail = " | ".join(output.strip().splitlines()[-3:])
            raise PartFailed(f"exit code {done.returncode} ({left_s:.0f} s at most): {tail}")
        return output

    def _path(self) -> str:
        """Return PYTHONPATH with the checkout before the user's entries."""
        return ":".join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))

    def is_complete(self) -> bool:
        """Return True if this interpreter already has the packages of the wheels."""
        return all(importlib.util.find_spec(name) for name in NEEDED)


def gpu_ids() -> list[str]:
    """Return the unique ids of the GPUs, in the order of their indexes."""
    if not shutil.which("nvidia-smi"):
        return []
    argv = ("nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    return [] if done.returncode else done.stdout.split()
