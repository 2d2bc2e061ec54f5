"""Our side of the process that has NIXL (link.py): start it, ask it, be sure that it ends."""

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
from hpc_dynamo.config import Config, Device
from hpc_dynamo.doctor import link
from hpc_dynamo.doctor.facts import in_container
from hpc_dynamo.doctor.records import LinkResult, MeasureLink
from hpc_dynamo.errors import KvTransferError
from hpc_dynamo.process.child import clean_environment

START_S, ANSWER_S = 60.0, 35.0
# UCX at its log level info: `name inter-node cfg#1 rma(rc_mlx5/mlx5_0:1) am(…)`.
CHOICE = re.compile(r"(?:inter|intra)-node cfg#\d+ .*?rma\w*\(([^)]*)\)")


class NixlEndpoint:
    """One node's end of all its links."""

    def __init__(self, process: asyncio.subprocess.Process, hello: dict[str, Any]) -> None:
        self._process, self._choice, self._asked = process, "", 0
        self.memory: str = hello["memory"]
        self.metadata = tuple(bytes.fromhex(text) for text in hello["metadata"])

    @property
    def pid(self) -> int:
        return self._process.pid

    async def measure(self, node: int, pull: MeasureLink) -> LinkResult:
        """The link from a peer; one that cannot be measured says why."""
        self._asked += 1
        line = json.dumps([self._asked, [data.hex() for data in pull.metadata]])
        try:
            async with asyncio.timeout(ANSWER_S):
                assert self._process.stdin
                self._process.stdin.write(f"{line}\n".encode())
                await self._process.stdin.drain()
                said = await self._answer()
        except TimeoutError:
            return LinkResult(node=node, peer=pull.peer, error=f"no answer in {ANSWER_S:.0f} s")
        except (KvTransferError, ConnectionError) as e:
            return LinkResult(node=node, peer=pull.peer, error=f"NIXL's process here ended: {e}")
        return LinkResult(node=node, peer=pull.peer, transport=self._choice, **said)

    async def _answer(self) -> dict[str, Any]:
        """To what was asked last: one that came too late may be before it."""
        while True:
            said, choice = await _said(self._process)
            self._choice = choice or self._choice  # UCX tells a choice once
            if said.pop("number") == self._asked:
                return said


@asynccontextmanager
async def nixl_endpoint(name: str, config: Config, address: str) -> AsyncIterator[NixlEndpoint]:
    """Until left. Raises KvTransferError where NIXL does not start."""
    inside = in_container(config.engine)  # of an image, where its interpreter is
    python = "" if inside else config.engine.python
    gpu = ["--gpu"] if config.engine.device is Device.cuda else []
    process = await asyncio.create_subprocess_exec(
        *(python or sys.executable, "-m", link.__name__, name, *gpu),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=_environment(config, address),
        limit=1 << 22,
    )
    try:
        async with asyncio.timeout(START_S):
            hello, _ = await _said(process)
        if "error" in hello:
            raise KvTransferError(str(hello["error"]))
        yield NixlEndpoint(process, hello)
    except TimeoutError as e:
        raise KvTransferError(f"NIXL did not start within {START_S:.0f} s") from e
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _environment(config: Config, address: str) -> dict[str, str]:
    """The engine's, and our own modules for an interpreter that has not got them."""
    ours = str(Path(hpc_dynamo.__file__).parents[1])
    path = os.pathsep.join(p for p in (ours, os.environ.get("PYTHONPATH", "")) if p)
    loopback = {"UCX_NET_DEVICES": "lo"} if address.startswith("127.") else {}
    own = {"PYTHONPATH": path, "UCX_LOG_LEVEL": "info"}
    return clean_environment(loopback | config.engine.env | own)


async def _said(process: asyncio.subprocess.Process) -> tuple[dict[str, Any], str]:
    """Its next record, and what UCX chose meanwhile. Raises KvTransferError at its end."""
    assert process.stdout
    choice, last = "", ""
    async for raw in process.stdout:
        line = raw.decode(errors="replace").strip()
        if line.startswith(link.MARK):
            return json.loads(line.removeprefix(link.MARK)), choice
        if match := CHOICE.search(line):
            choice = match[1]
        last = line or last
    raise KvTransferError(f"it ended with {last[-300:]!r}")
