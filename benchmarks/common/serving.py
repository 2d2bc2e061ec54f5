"""Serving job on this machine, started by `hpc-dynamo serve`."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.processes import ProcessExited, with_descendants
from hpc_dynamo.messages import Endpoint
from hpc_dynamo.run import Run

READY_S, END_S = 120.0, 40.0


@dataclass(frozen=True)
class ServingJob:
    """Running job. `url` has no /v1; all processes descend from `pid`."""

    pid: int
    url: str
    run: Run


@asynccontextmanager
async def serving(
    folder: Path, name: str, model: Path, overrides: Sequence[str], ready_s: float = READY_S
) -> AsyncIterator[ServingJob]:
    """Yield a job that serves; stop it with Ctrl-C. The log of the command is in `folder`.

    Raises ProcessExited if it does not start.
    """
    paths = (f"name={name}", f"model.path={model}", f"runs_dir={folder}")
    argv = (sys.executable, "-m", "hpc_dynamo", "serve", "cluster=local", *overrides, *paths)
    folder.mkdir(parents=True, exist_ok=True)
    log, run = folder / "serve.log", Run(folder / name)
    with log.open("wb") as out:
        # A separate session: Ctrl-C of the benchmark must not reach it.
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        url = (await _announced(process, run, log, ready_s)).url.removesuffix("/v1")
        yield ServingJob(process.pid, url, run)
    finally:
        await _end(process, run)


async def _announced(
    process: asyncio.subprocess.Process, run: Run, log: Path, ready_s: float
) -> Endpoint:
    deadline = time.monotonic() + ready_s
    while process.returncode is None and time.monotonic() < deadline:
        for attempt in run.attempts():
            if endpoint := attempt.endpoint():
                return endpoint
        await asyncio.sleep(0.2)  # polls for a file
    raise ProcessExited(f"no endpoint: {log.read_text().strip()[-800:]}", log=log)


async def _end(process: asyncio.subprocess.Process, run: Run) -> None:
    """Send Ctrl-C, and kill what remains after END_S."""
    agents = [node.pid for attempt in run.attempts() for node in attempt.nodes()]
    members = with_descendants([process.pid, *agents])
    if process.returncode is None:
        process.send_signal(signal.SIGINT)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), END_S)
    for pid in members:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    await process.wait()
