"""The same suite for the three ways in which engines share a request between two nodes."""

import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest

from hpc_dynamo.messages import Status, WorkerReport
from hpc_dynamo.run import Attempt
from tests.cluster.serving import serving
from tests.cluster.slurm import SlurmCluster
from tests.support.runs import HANG_S, SIMULATOR, answers, hpc_dynamo, latest, until, write_prompts

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.parametrize("protocol", ["vllm", "sglang", "trtllm"]),
]

SIMULATED = (
    "engine=simulator",
    "engine.args.timing=instant",
    "router.conditional_disaggregation=false",
)
TWO_DECODE = ("topology.nodes=3", "topology.prefill.workers=1", "topology.decode.workers=2")
CHAT: Any = [{"role": "user", "content": "hello"}]
LONG: dict[str, Any] = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}


def test_disaggregated_batch_equals_aggregated_batch(
    cluster: SlurmCluster, shared_dir: Path, protocol: str
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 40)
    words = ("batch", "input=prompts.jsonl")
    alone = (*words, *SIMULATOR, "topology=aggregated", "name=alone")
    assert hpc_dynamo(*alone, cwd=shared_dir).returncode == 0
    shared = (*words, *SIMULATED, *TWO_DECODE, "cluster.launcher=slurm", "name=shared")
    argv = (*shared, f"engine.args.pd-protocol={protocol}")
    done = hpc_dynamo(*argv, cwd=shared_dir, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = shared_dir / "runs"
    found = answers(runs / "shared/output.jsonl")
    assert list(found) == ids
    assert found == answers(runs / "alone/output.jsonl")
    outcome = latest(runs / "shared").outcome()
    assert outcome
    assert outcome.summary
    assert outcome.summary.kv_bytes > 0, "NIXL moved nothing between the nodes"


async def test_endpoint_survives_lost_decode_node(
    cluster: SlurmCluster, shared_dir: Path, protocol: str
) -> None:
    words = (
        *SIMULATED,
        *TWO_DECODE,
        "cluster.heartbeat_timeout_s=5",
        f"engine.args.pd-protocol={protocol}",
    )
    async with serving(cluster, shared_dir, *words, workers=3) as job:
        key = job.attempt.run.api_key()
        client = openai.AsyncOpenAI(base_url=job.url, api_key=key, max_retries=0, timeout=HANG_S)
        async with client:
            pieces = await _streamed(client)
            assert pieces > 1
            # SGLang would never answer this if it were sent as it is.
            told = await client.chat.completions.create(model=job.model, messages=CHAT, n=2)
            assert [choice.index for choice in told.choices] == [0, 1]
            leaves = await client.completions.create(
                model=job.model, prompt="hello", stream=True, **LONG
            )
            await anext(aiter(leaves))
            await leaves.close()
            until("its work is freed", lambda: _busy(job.attempt) == 0)
            _kill_a_decode_node(cluster, job.attempt)
            for _ in range(10):
                assert await _streamed(client) == pieces
    until("an empty queue", lambda: not cluster.slurm("squeue", "-h").strip())


async def _streamed(client: openai.AsyncOpenAI) -> int:
    """Pieces of an answer that is whole."""
    stream = await client.chat.completions.create(
        model="simulated", messages=CHAT, max_tokens=16, stream=True
    )
    choices = [chunk.choices[0] async for chunk in stream if chunk.choices]
    assert choices[-1].finish_reason in ("length", "stop")
    return len(choices)


def _status(attempt: Attempt) -> Status:
    status = attempt.status()
    assert status
    return status


def _busy(attempt: Attempt) -> int:
    return sum(load.active + load.running for load in _status(attempt).loads)


def _kill_a_decode_node(cluster: SlurmCluster, attempt: Attempt) -> None:
    """Not the head's: its agent, and with it its engines, from within its own namespace."""
    nodes = {node.node: node for node in attempt.nodes()}
    victim: WorkerReport = next(
        w for w in _status(attempt).workers if w.role == "decode" and w.node
    )
    agent = nodes[victim.node]
    subprocess.run(cluster.on(agent.host, "kill", "-9", str(agent.pid)), check=True)
    until("it is missed", lambda: victim.rank not in _ready(attempt))


def _ready(attempt: Attempt) -> set[int]:
    return {w.rank for w in _status(attempt).workers if w.state == "ready"}
