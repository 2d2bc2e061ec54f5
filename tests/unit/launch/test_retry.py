"""Another job after nodes failed at the start: when, and without which nodes."""

from dataclasses import replace

from hpc_dynamo.config import Cluster, Config
from hpc_dynamo.launch import retry
from hpc_dynamo.launch.excluded_nodes import without_nodes
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Run, write_json
from hpc_dynamo.topology import Plan

TWO_NODES = Plan(2, 0, ())


def test_failed_nodes_are_added_to_the_excluded_ones() -> None:
    config = without_nodes(Config(), "n2")
    assert config.cluster.slurm.extra["exclude"] == "n2"
    assert without_nodes(config, "n3,n4").cluster.slurm.extra["exclude"] == "n2,n3,n4"


def test_fault_on_all_nodes_ends_the_run(run: Run) -> None:
    attempt = run.new_attempt(Config(), TWO_NODES)
    everywhere = Outcome(exit_code=1, message="no model", bad_hosts=("n1", "n2"))
    assert retry.submit_without(attempt, everywhere) == everywhere


def test_number_of_jobs_is_limited(run: Run) -> None:
    config = replace(Config(), cluster=Cluster(tries=2))
    first, second = (run.new_attempt(config, TWO_NODES) for _ in range(2))
    bad = Outcome(exit_code=1, message="bad", bad_hosts=("n1",))
    write_json(first.outcome_file, bad)
    assert retry.submit_without(second, bad) == bad


def test_submission_error_is_part_of_the_outcome(run: Run) -> None:
    attempt = run.new_attempt(Config(), TWO_NODES)
    bad = Outcome(exit_code=1, message="n1 has no /dev/shm", bad_hosts=("n1",))
    outcome = retry.submit_without(attempt, bad)  # there is no Slurm here
    assert outcome.message.startswith("n1 has no /dev/shm; the next job could not be submitted")
    assert outcome.next_attempt == 0
