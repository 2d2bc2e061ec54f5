"""Nodes of an endpoint that Slurm loses or that are drained, with and without a spare node."""

import http.client
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hpc_dynamo.run import Run
from tests.cluster.namespaces import node_pid
from tests.cluster.node_failures import FAILURES, HARMLESS, job_field, resume
from tests.cluster.slurm import SlurmCluster
from tests.faults.test_lost_nodes import SHORT, hosts_of_ready
from tests.integration.serving.served import HEAD, Headers, Reply, Served
from tests.support.fault_rows import FaultMeasurement, FaultRecorder
from tests.support.runs import hpc_dynamo, latest, until
from tests.support.traffic import Answered, Traffic

pytestmark = [pytest.mark.cluster, pytest.mark.slow_fault]

SERVE = (
    *("serve", "name=s", "engine=simulator", "cluster.launcher=slurm", "--detach", *SHORT),
    *("topology=aggregated", "topology.nodes=2", "topology.aggregated.workers=2"),
)
RATE_HZ = 4.0
GIVE_UP_S = 300.0  # since the first try of a client
BUSY = (429, 503)  # OpenAI's clients send such a request again


@dataclass(frozen=True)
class FollowedUrl(Served):
    """Endpoint of a job that may be requeued, as clients see it that read its URL file.

    A request is sent again if no byte of a response came. `again` counts those by reason.
    """

    again: Counter[str] = field(default_factory=Counter)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Headers | None = None
    ) -> Reply:
        give_up = time.monotonic() + GIVE_UP_S
        while True:
            connection = self.connect()
            try:
                connection.request(method, path, body, {"Authorization": f"Bearer {self.key}"})
                answer = connection.getresponse()
                if answer.status not in BUSY or time.monotonic() > give_up:
                    return Reply(answer.status, dict(answer.getheaders()), answer.read())
                self.again[str(answer.status)] += 1
            except (OSError, http.client.RemoteDisconnected) as e:
                self.again[type(e).__name__] += 1
                if time.monotonic() > give_up:
                    raise
            finally:
                connection.close()
            time.sleep(0.5)

    def connect(self) -> http.client.HTTPConnection:
        url = urlsplit(self.attempt.run.url_file.read_text().strip())
        return http.client.HTTPConnection(url.hostname or "", url.port, timeout=90)


@contextmanager
def serving(cluster: SlurmCluster, folder: Path, *words: str) -> Iterator[FollowedUrl]:
    """Serve on two nodes; stop the run at the end, and require that its job succeeded."""
    done = hpc_dynamo(*SERVE, *words, cwd=folder, env=cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    served = FollowedUrl(latest(folder / "runs/s"))
    until("the endpoint", lambda: served.attempt.outcome() or served.attempt.endpoint(), 100)
    until("both workers", lambda: len(hosts_of_ready(served.attempt.run.path)) == 2, 100)
    yield served
    stopped = hpc_dynamo("stop", "s", cwd=folder, env=cluster.env)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    until("no jobs", lambda: not cluster.slurm("squeue", "--noheader").strip(), 60)
    outcome = served.attempt.outcome()
    assert outcome
    assert outcome.exit_code == 0, outcome


def job_of(served: Served) -> str:
    record = served.attempt.job()
    assert record is not None
    return record.job_id


def heads(cluster: SlurmCluster) -> int:
    """Return the number of heads on all nodes."""
    argv = ("pgrep", "--count", "--full", f"^[^ ]+ -m {HEAD}")
    counts = [
        subprocess.run(cluster.on(node, *argv), capture_output=True, text=True, check=False).stdout
        for node in cluster.nodes
        if node_pid(cluster.spec, node)
    ]
    return sum(map(int, counts))


def finish(row: FaultMeasurement, traffic: Traffic, lost: int = 0) -> None:
    """Record the requests; at most `lost` of them may have failed."""
    row.requests(traffic.sent, traffic.lost)
    assert traffic.lost <= lost, traffic.errors()


@pytest.mark.parametrize("how", HARMLESS)
def test_endpoint_keeps_a_node_that_slurm_leaves_to_it(
    healthy: SlurmCluster, shared_dir: Path, how: str, fault: FaultRecorder
) -> None:
    with serving(healthy, shared_dir) as served:
        row = fault(f"node {how}, endpoint (Slurm)", "nothing happens until the job ends")
        with Traffic(served, fault.chance, RATE_HZ) as traffic:
            traffic.wait_for(10)
            FAILURES[how](healthy, healthy.nodes[1])
            traffic.wait_for(60)
        finish(row, traffic)
        assert not served.again
        assert hosts_of_ready(served.attempt.run.path) == set(healthy.nodes[:2])
        assert job_field(healthy, job_of(served), "Restarts") == "0"
    if how == "drained":
        assert healthy.states() == {"idle", "drained"}
    else:
        until("all nodes idle, perhaps after a reboot", lambda: healthy.states() == {"idle"}, 60)


@pytest.mark.parametrize("how", ["set down", "powered off"])
def test_endpoint_with_a_spare_node_continues(
    healthy: SlurmCluster, shared_dir: Path, how: str, fault: FaultRecorder
) -> None:
    with serving(healthy, shared_dir, "cluster.spare_nodes=1") as served:
        row = fault(f"node {how}, endpoint with a spare node (Slurm)", "same URL, no request lost")
        run = served.attempt.run.path
        remaining = {healthy.nodes[0], healthy.nodes[2]}
        with Traffic(served, fault.chance, RATE_HZ) as traffic:
            traffic.wait_for(10)
            row.injected()
            FAILURES[how](healthy, healthy.nodes[1])
            until("a worker on the spare node", lambda: hosts_of_ready(run) == remaining, 90)
            row.recovered()
            traffic.wait_for(traffic.sent + 20)
        finish(row, traffic)
        assert not served.again
        assert job_field(healthy, job_of(served), "Restarts") == "0"
        assert heads(healthy) == 1


@pytest.mark.parametrize("how", ["set down", "rebooted", "powered off"])
def test_endpoint_without_a_spare_node_is_requeued(
    healthy: SlurmCluster, shared_dir: Path, how: str, fault: FaultRecorder
) -> None:
    """A powered off node is silent for SlurmdTimeout first. Meanwhile the other worker serves."""
    with serving(healthy, shared_dir) as served:
        row = fault(f"node {how}, endpoint (Slurm)", "requeued, the URL file is updated")
        job, run = job_of(served), Run(shared_dir / "runs/s")
        with Traffic(served, fault.chance, RATE_HZ) as traffic:
            traffic.wait_for(10)
            row.injected()
            FAILURES[how](healthy, healthy.nodes[1])
            until("the requeue", lambda: job_field(healthy, job, "Restarts") == "1", 150)
            resume(healthy, healthy.nodes[1])
            until("both workers", lambda: workers_after_restart(run) == 2, 150)
            row.recovered()
            traffic.wait_for(traffic.sent + 20)
        row.requests(traffic.sent, traffic.lost)
        # A stream that a client has begun to read ends with the job.
        assert all("stream" in r.error or "Incomplete" in r.error for r in failed(traffic)), (
            traffic.errors()
        )
        assert traffic.lost <= len(traffic.results) / 10
        assert heads(healthy) == 1
        assert healthy.slurm("squeue", "--noheader", "--format=%A").split() == [job]


def failed(traffic: Traffic) -> list[Answered]:
    return [result for result in traffic.results if result.error]


def workers_after_restart(run: Run) -> int:
    """Return the ready workers of the job's second execution."""
    attempt = latest(run.path)
    roster = attempt.roster()
    return len(hosts_of_ready(run.path)) if roster and roster.restart_count == 1 else 0
