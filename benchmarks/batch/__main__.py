"""Compare a batch through hpc-dynamo with vLLM's batch runner, in alternation on one machine.

    python -m benchmarks.batch [--repeats 3] [--prompts FILE]

Each run starts its engines, as a job does. "whole" is the time from the command to the last result
on disk; "answering" excludes the start of the engines (for vLLM's runner: according to its log).
The prompts and the model are those of `make demo`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hpc_dynamo.demo.engine_environment import DemoEngine
from hpc_dynamo.demo.provision import VLLM, provision
from hpc_dynamo.run import Run


@dataclass(frozen=True)
class BatchTiming:
    """Times of one run in seconds, and generated tokens."""

    whole_s: float
    answering_s: float
    tokens: int


def run_hpc_dynamo(engine: DemoEngine, prompts: Path, *words: str) -> BatchTiming:
    """Run `hpc-dynamo batch` in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        argv = ["batch", "engine=vllm-cpu", "cluster=local", "name=run", f"input={prompts}"]
        argv += [f"engine.python={engine.python}", f"model.path={engine.model}", *words]
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "hpc_dynamo", *argv], cwd=folder, check=True, capture_output=True
        )
        whole_s = time.monotonic() - began
        outcome = Run(Path(folder) / "runs/run").attempts()[-1].outcome()
        assert outcome is not None
        assert outcome.summary is not None
        return BatchTiming(
            whole_s, outcome.summary.seconds, outcome.summary.progress.completion_tokens
        )


def run_vllm(engine: DemoEngine, prompts: Path) -> BatchTiming:
    """Run vLLM's offline batch runner, one instance with both cores."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        rows = [json.loads(line) for line in prompts.read_text().splitlines()]
        for row in rows:
            row["body"]["model"] = "m"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        argv = [str(engine.python), "-m", "vllm.entrypoints.openai.run_batch"]
        argv += ["-i", str(source), "-o", str(output), "--model", str(engine.model)]
        argv += ["--served-model-name", "m", "--dtype", "float32", "--enforce-eager"]
        argv += ["--max-model-len", "2048", "--max-num-seqs", "16"]
        cores = str(os.cpu_count())
        env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": cores}
        log = Path(folder) / "log"
        began, ready = time.monotonic(), 0.0
        with log.open("w") as out:
            process = subprocess.Popen(argv, env=env, stdout=out, stderr=out)
            while process.poll() is None:
                if not ready and "Running batch" in log.read_text():  # progress bar
                    ready = time.monotonic()
                time.sleep(0.05)
        whole_s = time.monotonic() - began
        if process.returncode:
            raise SystemExit(f"vLLM's runner failed:\n{log.read_text()[-2000:]}")
        answers = [json.loads(line) for line in output.read_text().splitlines()]
        tokens = sum(a["response"]["body"]["usage"]["completion_tokens"] for a in answers)
        return BatchTiming(whole_s, began + whole_s - (ready or began), tokens)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    default = Path(str(files("hpc_dynamo.demo") / "prompts.jsonl"))
    parser.add_argument("--prompts", type=Path, default=default)
    args = parser.parse_args()
    engine = provision()
    prompts = args.prompts.resolve()
    variants: dict[str, Callable[[], BatchTiming]] = {
        "hpc-dynamo, 1 prefill + 1 decode": lambda: run_hpc_dynamo(engine, prompts),
        "hpc-dynamo, 2 aggregated": lambda: run_hpc_dynamo(
            engine, prompts, "topology=aggregated", "topology.aggregated.workers=2"
        ),
        "vLLM run_batch, 1 instance": lambda: run_vllm(engine, prompts),
    }
    found: dict[str, list[BatchTiming]] = {name: [] for name in variants}
    for _ in range(args.repeats):
        for name, run in variants.items():
            found[name].append(run())
    show(found, prompts, args.repeats)


def show(found: dict[str, list[BatchTiming]], prompts: Path, repeats: int) -> None:
    count = len(prompts.read_text().splitlines())
    title = (
        f"{count} prompts, SmolLM2-135M float32, vLLM {VLLM}; "
        f"{os.cpu_count()} cores {platform.machine()}, Python {platform.python_version()}; "
        f"median (minimum to maximum) of {repeats}"
    )
    table = Table("", "tokens", "answering s", "tokens/s", "whole s", title=title)
    for name, figures in found.items():
        rates = [f.tokens / f.answering_s for f in figures]
        answering, whole = [f.answering_s for f in figures], [f.whole_s for f in figures]
        row = (spread(answering), spread(rates), spread(whole))
        table.add_row(name, str(figures[0].tokens), *row)
    Console(width=110).print(table)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
