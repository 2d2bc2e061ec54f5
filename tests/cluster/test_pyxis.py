"""Engines that are steps of Slurm's own, as under Pyxis, for which a program stands in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm import SlurmCluster
from tests.support.runs import (
    each_once,
    hpc_dynamo,
    latest,
    until,
    until_results,
    write_prompts,
)

pytestmark = pytest.mark.cluster

# Takes Pyxis' options off the line, as the plugin does, and writes them down.
SRUN = r"""#!/bin/bash
for word; do
  case $word in
    --container-*|--no-container-*) echo "$word" >>"$(dirname "$0")/../boxes/$$" ;;
    *) kept+=("$word") ;;
  esac
done
exec /usr/bin/srun "${kept[@]}"
"""


def _engines(cluster: SlurmCluster, node: str) -> list[str]:
    """Return process ids in a node's namespace, without srun and its supervisor."""
    words = ("pgrep", "-f", "^[^ ]*python[^ ]* -m hpc_dynamo.simulator ")
    return subprocess.run(cluster.on(node, *words), capture_output=True, text=True).stdout.split()


def test_killed_srun_of_container_step_restarts_worker(
    cluster: SlurmCluster, shared_dir: Path
) -> None:
    ids = write_prompts(shared_dir / "prompts.jsonl", 30)
    for folder in ("bin", "boxes"):
        (shared_dir / folder).mkdir()
    (shared_dir / "bin/srun").write_text(SRUN)
    (shared_dir / "bin/srun").chmod(0o755)
    path = f"{shared_dir / 'bin'}:{cluster.env.get('PATH', os.environ['PATH'])}"
    done = hpc_dynamo(
        *("batch", "--detach", "engine=simulator", "cluster.launcher=slurm", "topology.nodes=2"),
        *(
            "engine.container.kind=pyxis",
            "engine.container.image=any/image:1",
            "batch.concurrency=4",
        ),
        *(f"engine.python={sys.executable}", "engine.args.time-scale=20", "input=prompts.jsonl"),
        "cluster.preflight=false",
        cwd=shared_dir,
        env={**cluster.env, "PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = shared_dir / "runs/prompts"
    attempt = latest(run)
    until_results(run, 3, 120)
    first, second, _ = cluster.nodes
    assert len(_engines(cluster, second)) == 1
    subprocess.run(cluster.on(second, "pkill", "-KILL", "-x", "srun"), check=True)
    outcome = until("the outcome", attempt.outcome, 120)
    assert outcome.exit_code == 0, outcome
    each_once(run, ids)
    said = attempt.agent_log(1).read_text()
    assert said.count(" starts: ") == 2, said
    assert "was killed by signal 9" in attempt.agent_log(0).read_text() + said
    boxes = [file.read_text().splitlines() for file in (shared_dir / "boxes").iterdir()]
    assert len(boxes) == 3, "of two workers, one of which was started twice"
    assert all("--container-image=any/image:1" in box for box in boxes)
    until("no engine left", lambda: not any(_engines(cluster, n) for n in (first, second)))
    assert "forcing job termination" not in attempt.worker_log(0).read_text(), "it had no time"
