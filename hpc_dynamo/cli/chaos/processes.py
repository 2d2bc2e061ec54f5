"""Processes of a run: which there are, and how a signal reaches them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from signal import Signals
from urllib.parse import urlsplit

from hpc_dynamo.cli.chaos import on_node
from hpc_dynamo.cli.chaos.schedule import Process, ProcessKind
from hpc_dynamo.errors import ConfigError, LaunchError
from hpc_dynamo.launch.environment import for_commands
from hpc_dynamo.messages import NodeRecord, WorkerState
from hpc_dynamo.run import Attempt

HEAD = "hpc_dynamo.tasks.head"  # by name, since it is in a higher layer
SIGNAL_S = 60.0  # limit for a signal, which is a Slurm step on another node


class RunProcesses:
    """Processes of an attempt. Raises ConfigError for a run of another user."""

    def __init__(self, attempt: Attempt) -> None:
        if attempt.run.path.stat().st_uid != os.getuid():
            what = f"{attempt.run.path} belongs to another user"
            raise ConfigError(what, hint="hpc-dynamo chaos RUN, with a run of yours")
        self._attempt = attempt

    def find(self) -> list[Process]:
        """Return the engines of ready workers, the frontends, the head and the other agents."""
        status, nodes = self._attempt.status(), self._nodes()
        ready = [w for w in status.workers if w.state is WorkerState.ready] if status else []
        found = [Process(ProcessKind.engine, w.rank, w.host) for w in ready]
        logs = self._attempt.logs.glob("frontend-*.log")
        indexes = sorted(int(log.stem.partition("-")[2]) for log in logs)
        found += [Process(ProcessKind.frontend, index, nodes[0].host) for index in indexes]
        found += [Process(ProcessKind.agent, node.node, node.host) for node in nodes[1:]]
        return [*found, Process(ProcessKind.head, 0, nodes[0].host)]

    def signal(self, process: Process, number: Signals) -> list[int]:
        """Send a signal; return the ids of the processes that got it. Raises LaunchError."""
        words = self._words(process)
        hosts = {node.host: node for node in self._nodes()}
        agent = hosts[process.host]
        program = [sys.executable, "-I", "-S", on_node.__file__, str(int(number)), str(agent.pid)]
        argv = [*self._prefix(agent), *program, *words]
        try:
            done = subprocess.run(
                argv, env=for_commands(), capture_output=True, text=True, timeout=SIGNAL_S
            )
        except subprocess.TimeoutExpired as e:
            raise LaunchError(f"{process}: no answer within {SIGNAL_S:.0f} s") from e
        if done.returncode:
            raise LaunchError(f"{process}: {done.stderr.strip()}")
        return [int(word) for word in done.stdout.split()]

    def _nodes(self) -> list[NodeRecord]:
        return sorted(self._attempt.nodes(), key=lambda record: record.node)

    def _words(self, process: Process) -> list[str]:
        """Return the arguments by which `on_node` recognizes a process."""
        match process.target:
            case ProcessKind.engine:
                status = self._attempt.status()
                workers = status.workers if status else ()
                url = next((w.url for w in workers if w.rank == process.index), "")
                if not url:
                    raise LaunchError(f"{process} is not ready")
                return ["--port", str(urlsplit(url).port)]
            case ProcessKind.frontend:
                return ["hpc_dynamo.frontend", str(self._attempt.path), str(process.index)]
            case ProcessKind.head:
                return [HEAD, str(self._attempt.path)]
            case ProcessKind.agent:
                return []

    def _prefix(self, node: NodeRecord) -> Sequence[str]:
        """Return srun's command for a node of a Slurm job; nothing for this machine."""
        job = self._attempt.job()
        if job is None or job.launcher == "local":
            return ()
        where = (f"--jobid={job.job_id}", f"--nodelist={node.host}", "--nodes=1", "--ntasks=1")
        return ("srun", "--overlap", "--mpi=none", "--cpu-bind=none", "--quiet", *where)
