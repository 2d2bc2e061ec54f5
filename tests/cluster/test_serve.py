"""An endpoint on three Slurm nodes, asked from outside of the nodes' namespaces."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest

from hpc_dynamo.messages import Endpoint
from hpc_dynamo.run import Run
from tests.cluster.slurm import SlurmCluster
from tests.support.runs import HANG_S, hpc_dynamo, latest, until

pytestmark = pytest.mark.cluster

WORDS = (
    "engine=simulator",
    "name=s",
    "engine.args.timing=instant",
    "cluster.heartbeat_timeout_s=5",
)
THREE_NODES = (
    "topology.nodes=3",
    "topology.prefill.workers=1",
    "topology.decode.workers=2",
)
ASKED: Any = [{"role": "user", "content": "hello"}]


def start(cluster: SlurmCluster, folder: Path, *words: str) -> tuple[Run, openai.OpenAI]:
    """A detached serving job, when it serves, and a client of it."""
    argv = ("serve", *WORDS, "cluster.launcher=slurm", "--detach", *words)
    done = hpc_dynamo(*argv, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(folder / "runs" / "s")
    return run, client(run)


def client(run: Run) -> openai.OpenAI:
    until("an endpoint", lambda: run.attempts() and latest(run.path).endpoint() is not None)
    return openai.OpenAI(base_url=endpoint(run).url, api_key=run.api_key(), timeout=HANG_S)


def endpoint(run: Run) -> Endpoint:
    found = latest(run.path).endpoint()
    assert found is not None
    return found


def ask(asked: openai.OpenAI, **more: Any) -> Any:
    """A chat completion from plain dictionaries, as users write them."""
    body: dict[str, Any] = {"model": "simulated", "messages": ASKED, "max_tokens": 4, **more}
    return asked.chat.completions.create(**body)


def say(asked: openai.OpenAI, **more: Any) -> str:
    answer = ask(asked, **more)
    return str(answer.choices[0].message.content)


def stop(cluster: SlurmCluster, folder: Path) -> None:
    done = hpc_dynamo("stop", "name=s", cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr


def gone(cluster: SlurmCluster) -> None:
    def left() -> bool:
        return not cluster.slurm("squeue", "-h").strip()

    # Slurm asks a node that was lost again only now and then whether its part has ended.
    until("the job to leave", left, timeout_s=180)


def ready_roles(run: Run) -> list[str]:
    asked = Request(f"{endpoint(run).url}/workers", headers=_key(run))
    with urlopen(asked, timeout=HANG_S) as got:
        rows = json.loads(got.read())["data"]
    return sorted(row["role"] for row in rows if row["state"] == "ready")


def _key(run: Run) -> dict[str, str]:
    return {"Authorization": f"Bearer {run.api_key()}"}


def test_three_nodes_and_the_death_of_one(cluster: SlurmCluster, shared_dir: Path) -> None:
    run, asked = start(cluster, shared_dir, *THREE_NODES)
    assert endpoint(run).address == cluster.address(cluster.nodes[0])
    assert say(asked)
    until("all workers", lambda: ready_roles(run) == ["decode", "decode", "prefill"])
    roster = latest(run.path).roster()
    assert roster is not None
    assert [node.host for node in roster.nodes] == list(cluster.nodes)
    before = {say(asked, seed=1) for _ in range(4)}
    assert len(before) == 1
    lost = cluster.nodes[2]
    cluster.crash(lost)
    try:
        assert {say(asked, seed=1) for _ in range(8)} == before
        until("the lost node to be noticed", lambda: ready_roles(run) == ["decode", "prefill"])
        stop(cluster, shared_dir)
    finally:
        cluster.boot(lost)  # Slurm waits for the node to end its step
    gone(cluster)


def test_the_end_of_the_walltime_drains_first(cluster: SlurmCluster, shared_dir: Path) -> None:
    """On one node, the endpoint must not listen on loopback: no other node could reach it."""
    words = ("topology=aggregated", "engine.args.timing=h100-8b", "engine.args.time-scale=10")
    run, asked = start(cluster, shared_dir, *words)
    more = {"stream": True, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    stream = iter(ask(asked, **more))
    next(stream)
    job = latest(run.path).job()
    assert job is not None
    cluster.slurm("scancel", "--signal=USR2", job.job_id)
    until("the drain", lambda: "draining" in _refusal(asked))
    pieces = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert pieces[-1].finish_reason == "length"
    gone(cluster)
    outcome = latest(run.path).outcome()
    assert outcome is not None
    assert outcome.exit_code == 0
    assert "drained" in outcome.message


def _refusal(asked: openai.OpenAI) -> str:
    try:
        say(asked.with_options(max_retries=0))
    except openai.APIStatusError as e:
        return str(e)
    return ""


def test_interactively_under_salloc(cluster: SlurmCluster, shared_dir: Path) -> None:
    """The same command inside an allocation; Ctrl-C ends it on all nodes."""
    serve = [sys.executable, "-m", "hpc_dynamo", "serve", *WORDS, *THREE_NODES]
    argv = ["salloc", "-N3", "--ntasks-per-node=1", *serve]
    log = shared_dir / "salloc.log"
    with log.open("wb") as out:
        shell = subprocess.Popen(
            argv, cwd=shared_dir, env=os.environ | cluster.env, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip
    try:
        run = Run(shared_dir / "runs" / "s")
        assert say(client(run))
        until("the curl line", lambda: "curl " in log.read_text())
        os.killpg(shell.pid, signal.SIGINT)
        shell.wait(timeout=HANG_S)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
    gone(cluster)
    for node in cluster.nodes:
        left = cluster.on(node, "pgrep", "-f", "hpc_dynamo.simulator")
        assert subprocess.run(left, capture_output=True).returncode == 1, f"engines on {node}"
