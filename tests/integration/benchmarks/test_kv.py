"""benchmarks.kv transfers the stated bytes and prints them with the machine's limits."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.kv.__main__ import MODELS
from tests.support.runs import HANG_S

ROOT = Path(__file__).parents[3]


def test_bytes_a_token_are_those_of_the_models() -> None:
    sizes = {model.name: model.token_bytes for model in MODELS}
    assert sizes["Llama-3.1-8B"] == 128 << 10
    assert sizes["Llama-3.1-70B"] == 320 << 10
    assert MODELS[0].sizes() == {"whole block": 2 << 20, "a layer's": 64 << 10}


def test_each_size_has_a_row_with_shares() -> None:
    argv = [sys.executable, "-m", "benchmarks.kv", "--quick", "--repeats", "1"]
    env = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("│ Llama")]
    assert len(rows) == 2
    assert all(row.count("%") == 3 for row in rows), done.stdout


def test_gpu_option_without_gpu_is_an_error() -> None:
    argv = [sys.executable, "-m", "benchmarks.kv", "--quick", "--gpu"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 1
    assert "torch sees no GPU here" in done.stderr
