"""A batch is killed at a random moment. The same command then completes it, each request once."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.serving.served import Served
from tests.support.fault_rows import FaultRecorder
from tests.support.faults import ended, engines, supervisors
from tests.support.runs import (
    SIMULATOR,
    answers,
    each_once,
    hpc_dynamo,
    latest,
    until,
    until_results,
    write_prompts,
)

pytestmark = pytest.mark.slow_fault  # CI runs tests/integration/batch/test_batch.py
REQUESTS = 120
BATCH = ("batch", *SIMULATOR, "input=p.jsonl", "topology.decode.workers=2")
PACE = ("engine.args.time-scale=5", "batch.concurrency=8")
ONCE = "the same command completes it, each request once"
CONTINUES = "it continues, each request once"
Command = subprocess.Popen[str]


def to_command(number: signal.Signals) -> Callable[[Command, Path, random.Random], None]:
    def send(command: Command, _run: Path, _chance: random.Random) -> None:
        command.send_signal(number)

    return send


def to_one(
    find: Callable[[Path], list[int]], number: signal.Signals
) -> Callable[[Command, Path, random.Random], None]:
    def send(_command: Command, run: Path, chance: random.Random) -> None:
        os.kill(chance.choice(find(latest(run).path)), number)

    return send


def task(command: Command, run: Path, _chance: random.Random) -> None:
    """Kill the task of node 0: the parent of the head, or the head itself."""
    os.kill(next(latest(run).nodes()).pid, signal.SIGKILL)


def everything(command: Command, run: Path, _chance: random.Random) -> None:
    command.kill()
    for pid in Served(latest(run)).processes():
        if not ended(pid):
            os.kill(pid, signal.SIGKILL)


def stop(_command: Command, run: Path, _chance: random.Random) -> None:
    done = hpc_dynamo("stop", "name=p", cwd=run.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr


def pause(_command: Command, run: Path, _chance: random.Random) -> None:
    """Stop all processes of the job for 2 s."""
    pids = Served(latest(run)).processes()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in pids:
            if not ended(pid):
                os.kill(pid, number)
        time.sleep(2.0 if number is signal.SIGSTOP else 0.0)


FAULTS: dict[str, tuple[str, Callable[[Command, Path, random.Random], None]]] = {
    "SIGKILL of all processes of a batch at once": (ONCE, everything),
    "SIGINT to the command of a batch": (ONCE, to_command(signal.SIGINT)),
    "SIGTERM to the command of a batch": (ONCE, to_command(signal.SIGTERM)),
    "SIGKILL of the command of a batch": (ONCE, to_command(signal.SIGKILL)),
    "SIGHUP to the command of a batch": (ONCE, to_command(signal.SIGHUP)),
    "SIGKILL of the task of node 0 of a batch": (ONCE, task),
    "SIGKILL of an engine of a batch": (CONTINUES, to_one(engines, signal.SIGKILL)),
    "SIGKILL of a supervisor of a batch": (CONTINUES, to_one(supervisors, signal.SIGKILL)),
    "`hpc-dynamo stop` of a batch": (ONCE, stop),
    "SIGSTOP of all processes of a batch for 2 s": (CONTINUES, pause),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the answers of a run without faults."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_prompts(folder / "p.jsonl", REQUESTS)
    done = hpc_dynamo(*BATCH, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return answers(folder / "runs/p/output.jsonl")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=name.replace(" ", "_")) for name in FAULTS],
)
def test_killed_batch_is_completed(
    tmp_path: Path, undisturbed: dict[str, str], name: str, fault: FaultRecorder
) -> None:
    ids = write_prompts(tmp_path / "p.jsonl", REQUESTS)
    run, (promise, inject) = tmp_path / "runs/p", FAULTS[name]
    argv = [sys.executable, "-m", "hpc_dynamo", *BATCH, *PACE]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, cwd=tmp_path, stdout=quiet, stderr=quiet, text=True) as command:
        wanted = fault.chance.randrange(1, REQUESTS // 2)
        until_results(run, wanted)
        row = fault(name, promise)
        inject(command, run, fault.chance)
        code = command.wait(200)
    job = Served(latest(run))
    until("the end of the job", lambda: not job.processes())
    if promise is CONTINUES:
        assert code == 0
    else:
        done = hpc_dynamo(*BATCH, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    row.recovered()
    row.requests(len(ids))
    each_once(run, ids)
    assert answers(run / "output.jsonl") == undisturbed
