"""Child process that cannot outlive this process: it runs under supervisor.py, and closing a pipe
ends it."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hpc_dynamo.process import supervisor
from hpc_dynamo.process.session import SESSION, processes
from hpc_dynamo.run.logs import limit_sizes

# Time of a supervisor to end its command and itself, in addition to the command's own time. One
# that is stopped needs longer, and is killed with its session.
SUPERVISOR_S = 5.0

# Variables by which Slurm, MPI and submitit describe the job, step or rank of this process. With
# them a child would join an MPI world that is not its own. Each srun or sbatch would take the
# limits of this job as its own options. SBATCH_* and similar variables are defaults of the user;
# launch/environment.py lists those that are kept.
JOB_VARIABLES = (
    *("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SALLOC_"),
    *("SQUEUE_", "SINFO_", "SCONTROL_", "SCANCEL_"),
    *("PMI_", "PMIX_", "PMI2_", "OMPI_", "PRTE_", "PALS_", "MPI_LOCAL", "HYDI_"),
    "SUBMITIT_",
)
# Parameters of Open MPI are settings of a site or user, except those that mpirun sets for a rank.
OPEN_MPI_SETTINGS = "OMPI_MCA_"
MPIRUN_VARIABLES = tuple(
    f"{OPEN_MPI_SETTINGS}{name}" for name in ("orte_", "ess", "pmix", "plm", "initial_wdir")
)

# Variable with the host that the run's first job was submitted from. For a job that is submitted
# inside a job, Slurm names a compute node instead.
LOGIN_HOST = "HPC_DYNAMO_LOGIN"

# Keeps Python (3.11 and later; others ignore it) from importing modules of the current folder: a
# user's queue.py there would replace that of the standard library.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without variables of this job, step and rank, plus `extra`.

    Python programs started with it do not import from the current folder.
    """
    own = {k: v for k, v in os.environ.items() if not _is_of_this_job(k)}
    return SAFE_PATH | own | dict(extra)


def _is_of_this_job(name: str) -> bool:
    if name.startswith(OPEN_MPI_SETTINGS):
        return name.startswith(MPIRUN_VARIABLES)
    return name.startswith(JOB_VARIABLES)


class Child:
    """Running command. `stop()` returns when its whole process group has ended."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, grace_s: float) -> None:
        self._process, self._grace_s = process, grace_s
        self._limiting = asyncio.create_task(limit_sizes([log]), name="log size")

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        grace_s: float,
        pass_fds: Sequence[int] = (),
        helpers: str = supervisor.KILL_HELPERS,
    ) -> "Child":
        """Run `argv` with exactly `env`; append stdout and stderr to `log`.

        `limit_sizes` keeps the log short. After `stop()` the command has `grace_s` seconds to end.
        It inherits the file descriptors `pass_fds`. With KEEP_HELPERS, processes that it started in
        sessions of their own continue when it ends.
        """
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", supervisor.__file__, str(grace_s), helpers, *argv),
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=dict(env),
                start_new_session=True,
                pass_fds=pass_fds,
            )
        return cls(process, log, grace_s)

    @property
    def session(self) -> int:
        """Id of the session of all its processes."""
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """Wait for the end. Returns the exit code, or 128 + n after signal n."""
        code = await self._process.wait()
        self._limiting.cancel()
        if code < 0:  # the supervisor itself was killed
            kill_session(self._process.pid)
        return _as_shell(code)

    async def stop(self) -> int:
        """Send SIGTERM, and SIGKILL after `grace_s`. Returns the exit code, also of an ended
        child."""
        if self._process.stdin:
            self._process.stdin.close()
        return await self._end_within(self._grace_s + SUPERVISOR_S)

    async def kill(self) -> int:
        """Send SIGKILL, for a child that hangs. Returns the exit code."""
        if self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write(supervisor.KILL)
        return await self._end_within(SUPERVISOR_S)

    async def _end_within(self, seconds: float) -> int:
        waiting = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait({waiting}, timeout=seconds)
            if not waiting.done():
                kill_session(self._process.pid)
            return await waiting
        finally:
            waiting.cancel()


def kill_session(leader: int) -> None:
    """Send SIGKILL to every process of the session of `leader` (proc(5), stat field 6)."""
    for process, fields in processes():
        if int(fields[SESSION]) == leader:
            with suppress(OSError):
                os.kill(int(process.name), signal.SIGKILL)


def _as_shell(code: int) -> int:
    return code if code >= 0 else 128 - code
