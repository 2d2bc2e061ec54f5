"""Peer heads: other `hpc-dynamo route` heads in front of the same engines.

Each head reads the loads of its peers fifty times per second and counts them when it selects a
worker. A peer that is silent for 1.5 s is no longer counted.
"""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from hpc_dynamo.http import MAX_REPORT_BYTES, HttpClient
from hpc_dynamo.router import RequestRouter, decode_loads

PATH = "/v1/loads"
INTERVAL_S = 0.02  # a prefill takes less than 0.1 s, so older loads mislead
TIMEOUT_S = 0.5
SILENT_S = 1.5  # since the last answer

log = logging.getLogger(__name__)


class PeerHeads:
    """Reads the loads of peers into `router`. `client` presents the API key that heads share."""

    def __init__(self, router: RequestRouter, urls: Sequence[str], client: HttpClient) -> None:
        self._router, self._urls, self._client = router, urls, client

    async def run(self) -> None:
        """Poll all peers until cancelled."""
        async with asyncio.TaskGroup() as group:
            for url in self._urls:
                group.create_task(self._poll(url), name=f"peer {url}")

    async def _poll(self, url: str) -> None:
        clock = asyncio.get_running_loop().time
        last_answer, counted = 0.0, False
        while True:
            error = await self._read_loads(url)
            last_answer = last_answer if error else clock()
            if error and counted and clock() - last_answer > SILENT_S:
                log.warning("head at %s is no longer counted: %s", url, error)
                self._router.set_peer_load(url, {})
                counted = False
            elif not error and not counted:
                log.info("head at %s is counted", url)
                counted = True
            await asyncio.sleep(INTERVAL_S)

    async def _read_loads(self, url: str) -> str:
        """Read the loads of a peer; return the error, or an empty string."""
        try:
            async with asyncio.timeout(TIMEOUT_S), self._client.send("GET", url, PATH) as answer:
                content = await answer.read(MAX_REPORT_BYTES)
            if answer.status != 200:
                return f"it answers {answer.status}"
            loads = decode_loads(content)
            # All heads may have the same list of peers, which then contains this head.
            if loads.head != self._router.head_name:
                self._router.set_peer_load(url, loads.workers)
        except TimeoutError:
            return f"no answer within {TIMEOUT_S} s"
        except (OSError, msgspec.DecodeError) as e:
            return str(e)
        return ""
