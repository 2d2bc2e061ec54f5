"""One process of a worker on this node, from its start to its end: all of the worker, or the part
of it that is on this node."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from subprocess import SubprocessError

from hpc_dynamo.config import Config
from hpc_dynamo.engines import Command, Placement, diagnose, engine, in_container
from hpc_dynamo.engines.root_cause import killed_itself, last_line, root_cause
from hpc_dynamo.errors import EngineError, HpcDynamoError
from hpc_dynamo.launch import mpi_step
from hpc_dynamo.process.child import Child, clean_environment
from hpc_dynamo.run import Attempt, write_atomic

TAIL_BYTES = 4000
CAUSE_BYTES = 64_000  # tracebacks of several processes
OUT_OF_MEMORY = "if it ran out of host memory: a larger engine.memory_gb, or fewer workers a node"

log = logging.getLogger(__name__)


class EngineProcess:
    """One life of it. The errors that it makes name worker, part, node and log."""

    def __init__(self, attempt: Attempt, config: Config, place: Placement, host: str) -> None:
        self._attempt, self._config, self._place = attempt, config, place
        self._log = attempt.worker_log(place.worker.rank, place.shard_index)
        self._began_at = self._log.stat().st_size if self._log.exists() else 0  # in its log
        worker, parts = place.worker, len(place.worker.shards)
        self._world = engine(config.engine.name).is_mpi_step(config, worker)
        self._step: mpi_step.WorkerStep | None = None  # that it is of Slurm's, if it is one
        which = (
            f", part {place.shard_index + 1} of {parts}," if parts > 1 and not self._world else ""
        )
        self.name = f"worker {worker.rank} ({worker.label}){which} on {host}"

    @property
    def url(self) -> str:
        return f"http://{self._place.address}:{self._place.ports[0]}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Child]:
        """While the process may run; at the end it has ended."""
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

    async def _command(self) -> Command:
        config, place, adapter = self._config, self._place, engine(self._config.engine.name)
        command = in_container(config, place, adapter.command(config, place))
        if not (self._world or command.container_args):
            return command
        step = self._step = mpi_step.WorkerStep(
            place.worker, None if self._world else place.shard_index, command.container_args
        )
        try:
            plan = self._attempt.plan()
            argv = await asyncio.to_thread(step.command, config, plan, command.argv)
        except (HpcDynamoError, SubprocessError) as e:
            raise EngineError(f"{self.name}: its step could not be started: {e}") from e
        return replace(command, argv=argv, env=mpi_step.step_environment(command.env))

    async def _end(self, child: Child, step: mpi_step.WorkerStep) -> None:
        """srun kills at SIGTERM: an engine that is a step gets its time to end from Slurm itself.
        A srun that was killed may have left the step."""
        alone, grace_s = step.shard_index is not None, self._config.engine.stop_timeout_s
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    if alone and child.running:
                        # Slurm 22.05 delivers it, and says that it knows no such job.
                        with suppress(HpcDynamoError):
                            await asyncio.to_thread(step.signal, "TERM")
                        await child.wait()
            if await child.stop() == 128 + signal.SIGKILL:
                await asyncio.to_thread(step.signal, "KILL")
        except HpcDynamoError as e:
            log.error("%s: its step may be left: %s", self.name, e)

    def exit_error(self, code: int) -> EngineError:
        if code <= 128:
            return self.error(f"exited with code {code}")
        if code == 128 + signal.SIGKILL and killed_itself(self.log_tail(CAUSE_BYTES)):
            return self.error("ended itself because one of its processes failed")
        killed = OUT_OF_MEMORY if code == 128 + signal.SIGKILL else ""
        return self.error(f"was killed by signal {code - 128}", killed)

    def error(self, how: str, hint: str = "") -> EngineError:
        tail = self.log_tail()
        said = mpi_step.killed_rank(tail) if self._step else ""
        # A process killed from outside logs no cause: the last line shows how far it came.
        said = said or (last_line(tail) if hint == OUT_OF_MEMORY else self._cause())
        found = diagnose(self._config, said) or diagnose(self._config, tail)
        return EngineError(f"{self.name} {how}: {said}", hint=found or hint, log=self._log)

    def _cause(self) -> str:
        return root_cause(self.log_tail(CAUSE_BYTES))

    def log_tail(self, most: int = TAIL_BYTES) -> str:
        """Return the end of its log, of this life only."""
        with self._log.open("rb") as file:
            file.seek(max(self._began_at, self._log.stat().st_size - most))
            return file.read().decode(errors="replace")
