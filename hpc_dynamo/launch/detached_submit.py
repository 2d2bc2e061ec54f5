"""Submission of a job from inside a job.

A new job inherits the environment of its submission, so a program without that of the current job
submits it: `extra_job_submit` or `next_attempt`.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping

from hpc_dynamo.errors import HpcDynamoError, LaunchError
from hpc_dynamo.launch.environment import for_submission

SUBMIT_S = 120.0
DEFAULT_HINT = "check that compute nodes may submit jobs like that of the run"


async def submit_detached(
    job: str,
    program: str,
    *args: str,
    env: Mapping[str, str] | None = None,
    hint: str = DEFAULT_HINT,
) -> str:
    """Run the module `program`, which submits `job`, and return the last line that it prints.

    `env` is added to its environment. Raises LaunchError.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", program, *args),
        env=for_submission(()) | dict(env or {}),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        # In a session of its own: a job on this machine continues if this process is killed.
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SUBMIT_S):
            out, err = await process.communicate()
    except TimeoutError as e:
        process.kill()
        await process.wait()
        what = f"{job} was not submitted within {SUBMIT_S:.0f} s"
        raise LaunchError(what, hint="`scontrol ping` shows if the controller responds") from e
    if process.returncode:
        reason = _last_line(err) or "no reason was reported"
        raise LaunchError(f"{job} could not be submitted: {reason}", hint=hint)
    return _last_line(out)


def run_submission(main: Callable[..., str]) -> None:
    """Call `main` of such a program with the arguments, and print what it returns, or its error."""
    try:
        print(main(*sys.argv[1:]))
    except HpcDynamoError as e:
        sys.exit(e.message)


def _last_line(output: bytes) -> str:
    return output.decode(errors="replace").strip().rpartition("\n")[2]
