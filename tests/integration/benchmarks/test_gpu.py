"""The GPU check on a machine without a GPU: every GPU part is skipped with a reason."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.runs import HANG_S

GPU_PARTS = ("nixl", "binding", "doctor", "vllm")


def check(folder: Path, env: Mapping[str, str], *words: str) -> tuple[int, dict[str, Any]]:
    argv = (sys.executable, "-m", "benchmarks.gpu", "--out", f"{folder}/out", *words)
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, timeout=HANG_S)
    return done.returncode, json.loads((folder / "out/results.json").read_text())


def test_without_gpu_all_parts_are_skipped_with_a_reason(tmp_path: Path) -> None:
    code, found = check(tmp_path, {"PATH": str(tmp_path)}, "--wheels", str(tmp_path))
    assert code == 0
    assert found["gpus"] == []
    assert found["parts"]["install"]["state"] == "passed"
    for name in GPU_PARTS:
        assert found["parts"][name]["state"] == "skipped"
        assert "nvidia-smi lists no GPU" in found["parts"][name]["text"]


def test_gpu_that_pytorch_does_not_see_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU-0\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "torch.py").write_text("raise ImportError('no driver')")
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    code, found = check(tmp_path, env)
    assert code == 0
    assert found["gpus"] == ["GPU-0"]
    assert {found["parts"][name]["state"] for name in GPU_PARTS} == {"skipped"}
    assert "PyTorch sees no GPU: ImportError: no driver" in found["parts"]["nixl"]["text"]


def test_failed_part_does_not_stop_the_others(tmp_path: Path) -> None:
    """A PyTorch that claims a GPU, but can allocate nothing there."""
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU-0\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "torch.py").write_text(
        "class cuda:\n    is_available = staticmethod(lambda: True)\n"
    )
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    code, found = check(tmp_path, env, "--parts", "nixl", "vllm")
    assert code == 1
    assert found["parts"]["nixl"]["state"] == "failed"
    assert "has no attribute 'empty'" in found["parts"]["nixl"]["text"]
    assert found["parts"]["vllm"]["state"] == "skipped"
    assert "no wheel of vLLM" in found["parts"]["vllm"]["text"]
