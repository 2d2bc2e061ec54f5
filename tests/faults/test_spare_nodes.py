"""Nodes that fail while a job has spare nodes. On this machine each agent is a node."""

import os
import signal
from pathlib import Path

import pytest

from tests.faults.test_hangs import ask
from tests.faults.test_head import agents, ready
from tests.integration.serving.served import Served, serving
from tests.support.fault_rows import FaultRecorder
from tests.support.faults import engines
from tests.support.runs import (
    SIMULATOR,
    each_once,
    hpc_dynamo,
    latest,
    results_on_disk,
    until,
    until_results,
    write_prompts,
)

TWO_AND_TWO = (
    *("topology=aggregated", "topology.nodes=2", "topology.aggregated.workers=2"),
    *("cluster.spare_nodes=2", "engine.max_restarts=0"),
)
# Longer than an agent waits for a CPU of a busy machine.
SILENT = ("cluster.heartbeat_timeout_s=10", "cluster.preflight=false")
MOVED = "its workers start on a spare node"


def nodes(served: Served) -> list[int]:
    """Return the nodes of the ready workers, by rank."""
    status = served.attempt.status()
    workers = status.workers if status else ()
    return [worker.node for worker in workers if worker.state == "ready"]


def test_workers_move_while_nodes_fail_and_return(tmp_path: Path, fault: FaultRecorder) -> None:
    with serving(tmp_path, *TWO_AND_TWO, *SILENT) as served:
        until("the workers", lambda: nodes(served) == [0, 1])
        row = fault("an engine fails until `engine.max_restarts`, with spare nodes", MOVED)
        os.kill(served.pid_of(ready(served)[1]), signal.SIGKILL)
        until("a spare node runs the worker", lambda: nodes(served) == [0, 2])
        row.recovered()
        row.requests(len(ask(served)))

        row = fault("a node of an endpoint with spare nodes is silent", MOVED)
        silent = agents(served)[2]
        os.kill(silent, signal.SIGSTOP)
        try:
            until("the other spare node runs the worker", lambda: nodes(served) == [0, 3])
            row.recovered()
            row.requests(len(ask(served)))
        finally:
            os.kill(silent, signal.SIGCONT)
        until("its own engine has ended", lambda: len(engines(served.attempt.path)) == 2)
        assert nodes(served) == [0, 3]

        row = fault("SIGKILL of the agent of a spare node in use, another is free", MOVED)
        os.kill(agents(served)[3], signal.SIGKILL)
        until("the node that was silent runs the worker", lambda: nodes(served) == [0, 2])
        row.recovered()
        row.requests(len(ask(served)))

        row = fault("SIGKILL of the agent of a node, no spare node is left", "the others serve")
        os.kill(silent, signal.SIGKILL)
        until("it is noticed", lambda: nodes(served) == [0])
        row.recovered()
        row.requests(len(ask(served)))
        assert len(ready(served)) == 1
        assert served.attempt.outcome() is None


# Nodes that pretend to have one GPU: the only worker has a shard on two of them.
OVER_NODES = (
    *("engine.device=cuda", "cluster.gpus_per_node=1", "topology=aggregated"),
    *("topology.aggregated.tensor_parallel=2", "cluster.spare_nodes=2", "input=prompts.jsonl"),
)
SLOW = ("engine.args.time-scale=15", "batch.concurrency=4")


@pytest.mark.parametrize(
    "lost", [(1, 2), pytest.param((1,), marks=pytest.mark.slow_fault)], ids=["several", "one"]
)
def test_batch_on_a_worker_over_nodes_survives_their_loss(
    tmp_path: Path, fault: FaultRecorder, lost: tuple[int, ...]
) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 24, max_tokens=16)
    run = tmp_path / "runs/prompts"
    words = (*SIMULATOR, *OVER_NODES, *SLOW, "cluster.preflight=false")
    begun = hpc_dynamo("batch", *words, "--detach", cwd=tmp_path)
    assert begun.returncode == 0, begun.stderr
    until_results(run, 4)
    row = fault(f"SIGKILL of agents {lost} of a batch with two spare nodes", MOVED)
    pids = {record.node: record.pid for record in latest(run).nodes()}
    for node in lost:
        os.kill(pids[node], signal.SIGKILL)
    before = results_on_disk(run)
    until("more results", lambda: results_on_disk(run) > before + 4)
    row.recovered()
    outcome = until("the end", latest(run).outcome, 120)
    assert outcome.exit_code == 0, outcome
    each_once(run, ids)
    row.requests(len(ids))
