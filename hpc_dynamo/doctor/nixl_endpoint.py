"""Control of the process that measures NIXL links (link.py)."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import hpc_dynamo
from hpc_dynamo.config import Device, Engine
from hpc_dynamo.doctor import link
from hpc_dynamo.doctor.facts import in_container
from hpc_dynamo.doctor.records import LinkResult, MeasureLink
from hpc_dynamo.errors import KvTransferError
from hpc_dynamo.process.child import clean_environment

START_TIMEOUT_S, MEASURE_TIMEOUT_S = 60.0, 35.0
# UCX at log level info: `name inter-node cfg#1 rma(rc_mlx5/mlx5_0:1) am(…)`.
UCX_TRANSPORT = re.compile(r"(?:inter|intra)-node cfg#\d+ .*?rma\w*\(([^)]*)\)")


class NixlEndpoint:
    """One node's end of all its links."""

    def __init__(self, process: asyncio.subprocess.Process, hello: dict[str, Any]) -> None:
        self._process, self._transport, self._sent = process, "", 0
        self.memory: str = hello["memory"]
        self.metadata = tuple(bytes.fromhex(text) for text in hello["metadata"])

    @property
    def pid(self) -> int:
        return self._process.pid

    async def measure(self, node: int, request: MeasureLink) -> LinkResult:
        """Measure the link from a peer. Failures are in the result's `error`."""
        self._sent += 1
        line = json.dumps([self._sent, [data.hex() for data in request.metadata]])
        try:
            async with asyncio.timeout(MEASURE_TIMEOUT_S):
                assert self._process.stdin
                self._process.stdin.write(f"{line}\n".encode())
                await self._process.stdin.drain()
                result = await self._receive()
        except TimeoutError:
            result = {"error": f"no answer in {MEASURE_TIMEOUT_S:.0f} s"}
        except (KvTransferError, ConnectionError) as e:
            result = {"error": f"the NIXL process of this node ended: {e}"}
        return LinkResult(node=node, peer=request.peer, transport=self._transport, **result)

    async def _receive(self) -> dict[str, Any]:
        """Return the answer to the last line. Answers to earlier lines may arrive before it."""
        while True:
            answer, transport = await _read_record(self._process)
            self._transport = transport or self._transport  # UCX logs it only once
            if answer.pop("number") == self._sent:
                return answer


@asynccontextmanager
async def nixl_endpoint(name: str, engine: Engine, address: str) -> AsyncIterator[NixlEndpoint]:
    """Run the process with the engine's interpreter. Raises KvTransferError if NIXL fails.

    The interpreter of an engine in a container is not usable here; this one replaces it.
    """
    python = "" if in_container(engine) else engine.python
    gpu = ["--gpu"] if engine.device is Device.cuda else []
    process = await asyncio.create_subprocess_exec(
        *(python or sys.executable, "-m", link.__name__, name, *gpu),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=_environment(engine, address),
        limit=1 << 22,
    )
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            hello, _ = await _read_record(process)
        if "error" in hello:
            raise KvTransferError(str(hello["error"]))
        yield NixlEndpoint(process, hello)
    except TimeoutError as e:
        raise KvTransferError(f"NIXL did not start within {START_TIMEOUT_S:.0f} s") from e
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment(engine: Engine, address: str) -> dict[str, str]:
    """Return the engine's environment, with this package for an interpreter that lacks it."""
    package = str(Path(hpc_dynamo.__file__).parents[1])
    path = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH", "")) if p)
    loopback = {"UCX_NET_DEVICES": "lo"} if address.startswith("127.") else {}
    own = {"PYTHONPATH": path, "UCX_LOG_LEVEL": "info"}
    return clean_environment(loopback | engine.env | own)


async def _read_record(process: asyncio.subprocess.Process) -> tuple[dict[str, Any], str]:
    """Return the next record, and the transport that UCX logged before it.

    Raises KvTransferError if the process ends.
    """
    assert process.stdout
    transport, last = "", ""
    async for raw in process.stdout:
        line = raw.decode(errors="replace").strip()
        if line.startswith(link.MARK):
            return json.loads(line.removeprefix(link.MARK)), transport
        if match := UCX_TRANSPORT.search(line):
            transport = match[1]
        last = line or last
    raise KvTransferError(f"it ended with {last[-300:]!r}")
