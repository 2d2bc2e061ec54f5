"""The run folder is deleted while its job runs."""

import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpc_dynamo.run import Run
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import HANG_S, SIMULATOR, until, write_prompts

AGGREGATED = (*SIMULATOR, "topology=aggregated")


@contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-m", "hpc_dynamo", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        argv, cwd=folder, stdout=pipe, stderr=subprocess.STDOUT, text=True
    ) as command:
        try:
            yield command
        finally:
            command.terminate()


def command_lines() -> str:
    """Return the command lines of all processes, one per line."""
    return subprocess.run(["ps", "-eo", "args", "ww"], capture_output=True, text=True).stdout


def delete(folder: Path) -> None:
    """Delete a folder in which files are made meanwhile."""

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until("the folder is deleted", gone)


def test_batch_ends_with_a_clear_error(tmp_path: Path, fault: FaultRecorder) -> None:
    write_prompts(tmp_path / "p.jsonl", 300, max_tokens=16)
    slow = ("batch.concurrency=2", "engine.args.time-scale=20")
    with started(tmp_path, "batch", *AGGREGATED, "input=p.jsonl", *slow) as command:
        part = tmp_path / "runs/p/parts/1.jsonl"
        until("a result", lambda: part.exists() and part.stat().st_size)
        row = fault("run folder of a batch deleted", "it ends with a clear error")
        delete(tmp_path / "runs")
        output, _ = command.communicate(timeout=HANG_S)
    row.recovered()
    assert command.returncode == 1
    assert f"the run folder {tmp_path}/runs/p was deleted while the job ran" in output
    assert "try: run the same command again" in output
    assert "Traceback" not in output


def test_serve_continues(tmp_path: Path, fault: FaultRecorder) -> None:
    with started(tmp_path, "serve", *AGGREGATED, "name=s") as command:
        run = Run(tmp_path / "runs/s")
        until("the endpoint", lambda: run.attempts() and run.attempts()[0].endpoint())
        until("the record of the job", run.attempts()[0].job)
        attempt, headers = run.attempts()[0], {"Authorization": f"Bearer {run.api_key()}"}
        endpoint = attempt.endpoint()
        assert endpoint is not None
        with attempt.agent_log(0).open() as log:
            row = fault("run folder deleted while serving", "requests continue")
            delete(run.path)
            until("a warning", lambda: "status not written" in log.read())
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            request = urllib.request.Request(f"{endpoint.url}/models", headers=headers)
            with direct.open(request, timeout=HANG_S) as response:
                assert response.status == 200
            row.requests(1)
            command.send_signal(signal.SIGINT)
            output, _ = command.communicate(timeout=HANG_S)
            log.seek(0)
            assert log.read().count("status not written") <= 2
    until("the end of the agent", lambda: str(run.path) not in command_lines())
    assert "Traceback" not in output
