"""Role change inside a running engine: asks the engine, and again while it is not idle yet."""

import asyncio

import msgspec

from hpc_dynamo.config import Role
from hpc_dynamo.engine_errors import append_engine_error
from hpc_dynamo.engines import Body, RoleSwitch
from hpc_dynamo.http import MAX_REPORT_BYTES, HttpClient

# An engine still works for some seconds on requests whose clients have left.
BUSY_S = 10.0
RETRY_S = 0.2
PEER_TIMEOUT_S = 10.0

OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class EngineRoleSwitch:
    """Changes the role of drained engines by their own request for it."""

    def __init__(self, client: HttpClient, switch: RoleSwitch, timeout_s: float) -> None:
        """`timeout_s` is the limit of one change, for example with a capture of CUDA graphs."""
        self._client, self._switch, self._timeout_s = client, switch, timeout_s

    async def change(self, url: str, role: Role, peer_url: str) -> str:
        """Change the role of the engine at `url`; return the reason if it did not.

        `peer_url` is that of a worker of the new role; empty if there is none.
        """
        try:
            body = self._switch.body(role, await self._peer(peer_url))
            async with asyncio.timeout(self._timeout_s):
                return await self._request(url, msgspec.json.encode(body))
        except OSError as e:  # TimeoutError is one
            return f"{self._switch.path}: {e or type(e).__name__}"

    async def _request(self, url: str, content: bytes) -> str:
        give_up = asyncio.get_running_loop().time() + BUSY_S
        while True:
            async with self._client.send("POST", url, self._switch.path, content) as response:
                answer = await response.read(MAX_REPORT_BYTES)
            if response.status == 200:
                return ""
            busy = self._switch.busy.encode() in answer
            if not busy or asyncio.get_running_loop().time() > give_up:
                what = f"{self._switch.path} answered {response.status}"
                return append_engine_error(what, answer)
            await asyncio.sleep(RETRY_S)

    async def _peer(self, url: str) -> Body:
        """Return the description of a worker of the new role; empty if it gives none."""
        if not (url and self._switch.peer_path):
            return {}
        try:
            async with asyncio.timeout(PEER_TIMEOUT_S):
                async with self._client.send("GET", url, self._switch.peer_path) as response:
                    return OBJECT.decode(await response.read(MAX_REPORT_BYTES))
        except (OSError, msgspec.DecodeError):
            return {}
