"""Serving jobs on the test cluster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from hpc_dynamo.run import Attempt, Run
from tests.cluster.slurm import SlurmCluster
from tests.support.load import Load
from tests.support.runs import hpc_dynamo, latest, until

SERVE = ("serve", "name=s", "cluster.launcher=slurm", "--detach")
PLANNER = (
    *("planner.mode=load", "planner.interval_s=1", "planner.stabilization_intervals=1"),
    *(
        "planner.prefill_wait_threshold_s=0.2",
        "planner.kv_usage_high=0.3",
        "planner.kv_usage_low=0.05",
    ),
    "router.conditional_disaggregation=false",
)
START_S = 300.0


@dataclass(frozen=True)
class Serving:
    """A running serving job: its attempt, endpoint URL and model name."""

    attempt: Attempt
    url: str
    model: str

    def load(self, prompt_words: int, max_tokens: int) -> Load:
        return Load(self.url, self.attempt.run.api_key(), self.model, prompt_words, max_tokens)


@asynccontextmanager
async def serving(
    cluster: SlurmCluster, folder: Path, *words: str, workers: int, model: str = "simulated"
) -> AsyncIterator[Serving]:
    """Start `hpc-dynamo serve`, wait for `workers` ready workers, and stop it at the end."""
    done = hpc_dynamo(*SERVE, *words, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    attempt = latest(folder / "runs" / "s")
    try:
        until("an endpoint", lambda: attempt.endpoint() or attempt.outcome(), START_S)
        endpoint = attempt.endpoint()
        assert endpoint, attempt.outcome()
        until("all workers", lambda: ready(attempt.run) == workers, START_S)
        yield Serving(attempt, endpoint.url, model)
    finally:
        hpc_dynamo("stop", "name=s", cwd=folder, env=cluster.env)


def ready(run: Run) -> int:
    status = latest(run.path).status()
    return sum(w.state == "ready" for w in status.workers) if status else 0
