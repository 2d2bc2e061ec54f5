"""One engine process on this node: a whole worker, or one shard of a multi-node worker."""

import asyncio
import logging
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from subprocess import SubprocessError

from hpc_dynamo.config import Config
from hpc_dynamo.engines import EngineCommand, Placement, diagnose, engine, in_container
from hpc_dynamo.engines.diagnostics import PORT_TAKEN
from hpc_dynamo.engines.root_cause import killed_itself, last_line, root_cause
from hpc_dynamo.errors import EngineError, HpcDynamoError
from hpc_dynamo.launch import mpi_step
from hpc_dynamo.process.child import Child, clean_environment
from hpc_dynamo.process.listeners import port_user
from hpc_dynamo.process.node_folder import has_private_tmpdir
from hpc_dynamo.process.session import SessionMonitor, SessionUsage
from hpc_dynamo.process.stack_traces import ENVIRONMENT
from hpc_dynamo.run import Attempt, write_atomic

TAIL_BYTES = 4000
CAUSE_BYTES = 64_000  # enough for tracebacks of several processes
KILLED = 128 + signal.SIGKILL
OUT_OF_MEMORY = (
    "if it ran out of host memory, increase engine.memory_gb or run fewer workers per node"
)

log = logging.getLogger(__name__)


def temporary_folders(place: Placement) -> dict[str, str]:
    """Return variables of folders in the node's one, which is removed after a dead engine.

    Engines with one cache of compiled code lock it. They would seem to hang while they sleep
    until another one has compiled, so each has its own. A TMPDIR elsewhere, whose disk may be
    larger, is kept if only this user can write there: engines use fixed names.
    """
    folder = place.events_folder
    if not folder:
        return {}
    compiled = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor-{place.worker.rank}"}
    kept = has_private_tmpdir() and not folder.startswith(tempfile.gettempdir())
    return compiled | ({} if kept else {"TMPDIR": folder})


class PortTaken(EngineError):
    """Another process took a port before the engine did. This is no failure of the engine."""


class EngineProcess:
    """One execution of the process. Its errors name worker, shard, node, cause and log."""

    def __init__(
        self,
        attempt: Attempt,
        config: Config,
        place: Placement,
        host: str,
        sessions: SessionMonitor,
    ) -> None:
        self._attempt, self._config, self.placement = attempt, config, place
        self._sessions = sessions
        self._log = attempt.worker_log(place.worker.rank, place.shard_index)
        # Earlier executions have written to the same log.
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        worker, shards = place.worker, len(place.worker.shards)
        self._is_mpi_step = engine(config.engine.name).is_mpi_step(config.engine, worker)
        self._step: mpi_step.WorkerStep | None = None  # Slurm step that runs it, if any
        several = shards > 1 and not self._is_mpi_step
        shard = f", shard {place.shard_index + 1} of {shards}," if several else ""
        self.name = f"worker {worker.rank} ({worker.label}){shard} on {host}"

    @property
    def url(self) -> str:
        return f"http://{self.placement.address}:{self.placement.ports[0]}"

    async def listens(self) -> bool:
        """Return True if its HTTP port is open, and is this user's.

        Raises PortTaken if another user listens there: the key must not go to that user.
        """
        place = self.placement
        user = await asyncio.to_thread(port_user, place.address, place.ports[0])
        if user.other_user:
            raise self._port_taken(place.ports[0], user.other_user)
        return user.listening

    async def start_error(self, error: EngineError) -> EngineError:
        """Return PortTaken if another process has a port that the engine needs, else `error`."""
        place = self.placement
        needed = place.ports + (place.rendezvous.ports if place.rendezvous else ())
        for port in needed:
            user = await asyncio.to_thread(port_user, place.address, port)
            if user.other_user:
                return self._port_taken(port, user.other_user)
        if error.hint == PORT_TAKEN:  # for a moment only
            return PortTaken(error.message, hint=error.hint, log=error.log)
        return error

    def _port_taken(self, port: int, user: str) -> "PortTaken":
        what = f"cannot use its port {port}: a process of user {user} took it and listens there"
        return PortTaken(f"{self.name} {what}", hint=PORT_TAKEN, log=self._log)

    @property
    def hang_timeout_s(self) -> float:
        return self._config.engine.hang_timeout_s

    async def usage(self, child: Child) -> SessionUsage | None:
        """Return the usage of its processes; None if they run in a Slurm step."""
        return None if self._step else await self._sessions.usage(child.session)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Child]:
        """Run the process while the context is open. At its end the process has exited."""
        command = await self._command()
        log.info("%s starts: %s", self.name, " ".join(command.argv))
        for name, text in command.files.items():
            write_atomic(self._attempt.logs / name, text.encode(), mode=0o600)
        env, grace_s = clean_environment(command.env), self._config.engine.stop_timeout_s
        child = await Child.start(command.argv, env, self._log, grace_s)
        try:
            yield child
        finally:
            if self._step:
                await self._end(child, self._step)
            await child.stop()

    async def _command(self) -> EngineCommand:
        config, place, adapter = self._config, self.placement, engine(self._config.engine.name)
        command = adapter.command(config, place)
        # The other nodes of an MPI step do not have the folder of this one.
        temporary = {} if self._is_mpi_step else temporary_folders(place)
        env = {**ENVIRONMENT, **temporary, **command.env}
        command = in_container(config, place, replace(command, env=env))
        if not (self._is_mpi_step or command.container_args):
            return command
        step = self._step = mpi_step.WorkerStep(
            place.worker, None if self._is_mpi_step else place.shard_index, command.container_args
        )
        try:
            plan = self._attempt.plan()
            argv = await asyncio.to_thread(step.command, config, plan, command.argv)
        except (HpcDynamoError, SubprocessError) as e:
            raise EngineError(f"{self.name}: its Slurm step could not be started: {e}") from e
        return replace(command, argv=argv, env=mpi_step.step_environment(command.env))

    async def _end(self, child: Child, step: mpi_step.WorkerStep) -> None:
        """End a Slurm step. srun kills at SIGTERM, so Slurm signals the engine first.

        If srun itself was killed, its step may still run.
        """
        single, grace_s = step.shard_index is not None, self._config.engine.stop_timeout_s
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    if single and child.running:
                        # Slurm 22.05 delivers the signal, but reports an unknown job.
                        with suppress(HpcDynamoError):
                            await asyncio.to_thread(step.signal, "TERM")
                        await child.wait()
            if await child.stop() == KILLED:
                await asyncio.to_thread(step.signal, "KILL")
        except HpcDynamoError as e:
            log.error("%s: its Slurm step may still run: %s", self.name, e)

    def exit_error(self, code: int) -> EngineError:
        """Return the error for an exit code; above 128 a signal has killed the process."""
        if code <= 128:
            return self.error(f"exited with code {code}")
        if code == KILLED and killed_itself(self.log_tail(CAUSE_BYTES)):
            return self.error("exited because one of its processes failed")
        hint = OUT_OF_MEMORY if code == KILLED else ""
        return self.error(f"was killed by signal {code - 128}", hint)

    def error(self, what: str, hint: str = "") -> EngineError:
        """Return an error with the cause from the log. `hint` is used if no better one is known."""
        tail = self.log_tail()
        cause = mpi_step.killed_rank(tail) if self._step else ""
        # A process killed from outside logs no cause; its last line shows what it was doing.
        cause = cause or (last_line(tail) if hint == OUT_OF_MEMORY else self._cause())
        found = diagnose(self._config.engine, cause) or diagnose(self._config.engine, tail)
        return EngineError(f"{self.name} {what}: {cause}", hint=found or hint, log=self._log)

    def _cause(self) -> str:
        return root_cause(self.log_tail(CAUSE_BYTES))

    def log_tail(self, size_bytes: int = TAIL_BYTES) -> str:
        """Return the end of the log of this execution."""
        with self._log.open("rb") as file:
            size = self._log.stat().st_size
            # A log that has become shorter was emptied by limit_size.
            start = self._log_start if self._log_start <= size else 0
            file.seek(max(start, size - size_bytes))
            return file.read().decode(errors="replace")
