"""A serving job as a user starts it: `hpc-dynamo serve` on this machine, and its end."""

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
    """A job that is there. `url` is without /v1; all its processes descend from `pid`."""

    pid: int
    url: str
    run: Run


@asynccontextmanager
async def serving(
    folder: Path, name: str, model: Path, overrides: Sequence[str]
) -> AsyncIterator[ServingJob]:
    """The job from its endpoint's announcement to Ctrl-C; its command's output in `folder`.

    Raises Ended where it does not come up.
    """
    paths = (f"name={name}", f"model.path={model}", f"runs_dir={folder}")
    argv = (sys.executable, "-m", "hpc_dynamo", "serve", "cluster=local", *overrides, *paths)
    folder.mkdir(parents=True, exist_ok=True)
    log, run = folder / "serve.log", Run(folder / name)
    with log.open("wb") as out:
        # In a session of its own: our Ctrl-C is not its, it gets one when we are done.
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        url = (await _announced(process, run, log)).url.removesuffix("/v1")
        yield ServingJob(process.pid, url, run)
    finally:
        await _end(process, run)


async def _announced(process: asyncio.subprocess.Process, run: Run, log: Path) -> Endpoint:
    deadline = time.monotonic() + READY_S
    while process.returncode is None and time.monotonic() < deadline:
        for attempt in run.attempts():
            if endpoint := attempt.endpoint():
                return endpoint
        await asyncio.sleep(0.2)  # a file is looked for
    raise ProcessExited(f"no endpoint: {log.read_text().strip()[-800:]}", log=log)


async def _end(process: asyncio.subprocess.Process, run: Run) -> None:
    """Ctrl-C, and what is still there after END_S is killed."""
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
