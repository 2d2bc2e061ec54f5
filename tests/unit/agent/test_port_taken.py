"""Another user takes the port of an engine before the engine does: no key goes there."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo.agent import worker_restarts
from hpc_dynamo.agent.engine_process import EngineProcess, PortTaken
from hpc_dynamo.agent.engine_start import wait_until_ready
from hpc_dynamo.agent.hang_watch import _has_port
from hpc_dynamo.agent.worker_restarts import MAX_TAKEN_PORTS, WorkerRestarts
from hpc_dynamo.config import Config, Engine, Role, Task
from hpc_dynamo.engines import Placement
from hpc_dynamo.engines.diagnostics import PORT_TAKEN
from hpc_dynamo.errors import EngineError
from hpc_dynamo.process import listeners
from hpc_dynamo.process.session import SessionMonitor
from hpc_dynamo.topology import Shard, Worker
from tests.support.terminal import new_run

HOST, OTHER, RANK = "127.0.0.1", 4711, 0
OUTPUT = b'{"choices":[{"text":"x"}],"data":[]}'
HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"


class Port:
    """A server on a port, and the process that should have it."""

    def __init__(self, folder: Path) -> None:
        self.requests = list[bytes]()
        self._folder = folder

    async def open(self) -> EngineProcess:
        """Start the server; return the engine that has been given its port."""
        self.server = await asyncio.start_server(self._answer, HOST, 0)
        self.port = self.server.sockets[0].getsockname()[1]
        attempt = new_run(self._folder / "run", replace(Config(), task=Task.serve))
        attempt.worker_log(RANK).parent.mkdir(exist_ok=True)
        attempt.worker_log(RANK).touch()
        worker = Worker(RANK, Role.decode, (Shard(0, (0,)),))
        place = Placement(worker, HOST, (self.port,), (), "secret", events_folder="")
        return EngineProcess(attempt, attempt.config(), place, "n1", SessionMonitor(1.0))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(HEAD % len(OUTPUT) + OUTPUT)
        writer.close()


@pytest.fixture
def port(tmp_path: Path) -> Port:
    return Port(tmp_path)


def give_to(
    monkeypatch: pytest.MonkeyPatch, folder: Path, port: int, uid: int | None = None
) -> None:
    """Let the kernel's table show that the port belongs to a user; without one, it is closed."""
    row = f" 0: 0100007F:{port:04X} 00000000:0000 0A 0:0 00:0 0 {uid} 0 77 1\n"
    (folder / "tcp").write_text("header\n" + (row if uid is not None else ""))
    monkeypatch.setattr(listeners, "TABLES", (folder / "tcp",))


async def never() -> EngineError:
    await asyncio.Event().wait()
    raise AssertionError


async def start(process: EngineProcess, exited: "asyncio.Task[EngineError]") -> None:
    async with asyncio.timeout(60):
        await wait_until_ready(Config(), process, Role.decode, "secret", exited)


async def test_key_is_not_sent_to_another_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: Port
) -> None:
    process = await port.open()
    async with port.server:
        give_to(monkeypatch, tmp_path, port.port, OTHER)
        with pytest.raises(PortTaken, match=f"port {port.port}: a process of user {OTHER}"):
            await start(process, asyncio.create_task(never()))
        assert not await _has_port(process)  # the hang watch
    assert port.requests == []


async def test_key_is_sent_once_the_port_is_the_engines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: Port
) -> None:
    process = await port.open()
    async with port.server:
        give_to(monkeypatch, tmp_path, port.port)
        starting = asyncio.create_task(start(process, asyncio.create_task(never())))
        await asyncio.sleep(0.1)
        assert port.requests == []
        monkeypatch.undo()  # the tables of this machine
        await starting
        assert b"Bearer secret" in port.requests[0]
        assert await _has_port(process)


@pytest.mark.parametrize("uid", [OTHER, None])
async def test_exit_because_of_the_port(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, port: Port, uid: int | None
) -> None:
    """The other user may have closed the port already."""

    async def exited() -> EngineError:
        return EngineError("exited: address already in use", hint="" if uid else PORT_TAKEN)

    process = await port.open()
    async with port.server:
        give_to(monkeypatch, tmp_path, port.port, uid)
        task = asyncio.create_task(exited())
        await task
        with pytest.raises(PortTaken):
            await start(process, task)


def test_taken_ports_do_not_use_up_restarts() -> None:
    restarts = WorkerRestarts(replace(Engine(), max_restarts=1))
    taken, broken = PortTaken("taken"), EngineError("broken")
    for _ in range(MAX_TAKEN_PORTS):
        assert restarts.failed(taken, 0.0, was_ready=False)
    assert restarts.failed(broken, 0.0, was_ready=False)
    assert not restarts.failed(broken, 0.0, was_ready=False)


def test_taken_ports_are_bounded() -> None:
    restarts, taken = WorkerRestarts(replace(Engine(), max_restarts=1)), PortTaken("taken")
    starts = 1
    while restarts.failed(taken, 0.0, was_ready=False):
        starts += 1
        assert starts < 100
    assert starts == 2 * (worker_restarts.MAX_TAKEN_PORTS + 1)
