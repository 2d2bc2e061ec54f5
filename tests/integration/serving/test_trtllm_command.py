"""engine=trtllm with a fake engine: command, options file and responses."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support import trtllm_serve
from tests.support.hub import model_folder
from tests.support.runs import answers, hpc_dynamo, latest, write_prompts

SMALL = ("cluster.launcher=local", "engine.cpus=1", "engine.memory_gb=1", "engine.max_num_seqs=9")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Create a module tensorrt_llm.commands.serve and a model folder."""
    package = tmp_path / "tensorrt_llm" / "commands"
    package.mkdir(parents=True)
    for part in (package.parent, package):
        (part / "__init__.py").touch()
    shutil.copy(trtllm_serve.__file__, package / "serve.py")
    model_folder(tmp_path / "llama")
    return tmp_path


def test_trtllm_command_file_and_responses(folder: Path) -> None:
    ids = write_prompts(folder / "prompts.jsonl", 10)
    words = (
        *("engine=trtllm", f"model.path={folder}/llama", "cluster.gpus_per_node=2", *SMALL),
        *(f"engine.env.PYTHONPATH={folder}", "+engine.env.UCX_NET_DEVICES=lo"),
        *("engine.args.max_num_tokens=777", "router.transfer_cost_tokens=0", "input=prompts.jsonl"),
        "engine.args.extra.kv_cache_config.enable_block_reuse=false",
    )
    # The fake engine needs no GPU, and this machine may have none.
    done = hpc_dynamo("batch", *words, "--no-preflight", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(answers(folder / "runs" / "prompts" / "output.jsonl")) == ids
    attempt = latest(folder / "runs" / "prompts")
    for worker in attempt.plan().workers:
        written = attempt.logs / f"worker-{worker.rank}.yaml"
        fields = json.loads(written.read_text())
        assert fields["cache_transceiver_config"]["backend"] == "NIXL"
        assert fields["kv_cache_config"] == {"enable_block_reuse": False}
        assert written.stat().st_mode & 0o777 == 0o600
        log = attempt.worker_log(worker.rank).read_text()
        assert f"serving with {fields}, 777 tokens a step" in log
