"""Other heads before the same engines: what they have on these, read several times a second.

A choice counts it as if it were ours, a little late; a head that is silent is not counted.
"""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from hpc_dynamo.http import HttpClient
from hpc_dynamo.router import Router, decode_loads

PATH = "/v1/loads"
ASK_S = 0.02  # a prefill is over in less than 0.1: what is told later misleads
ANSWER_S = 0.5
SILENT_S = 1.5  # since its last word

log = logging.getLogger(__name__)


class PeerHeads:
    """`client` presents the API key that the heads share, and keeps a connection to each."""

    def __init__(self, router: Router, urls: Sequence[str], client: HttpClient) -> None:
        self._router, self._urls, self._client = router, urls, client

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for url in self._urls:
                group.create_task(self._follow(url), name=f"peer {url}")

    async def _follow(self, url: str) -> None:
        clock = asyncio.get_running_loop().time
        at, there = 0.0, False
        while True:
            why = await self._listen(url)
            at = at if why else clock()
            if why and there and clock() - at > SILENT_S:
                log.warning("head at %s is not counted any more: %s", url, why)
                self._router.set_peer_load(url, {})
                there = False
            elif not why and not there:
                log.info("head at %s is here", url)
                there = True
            await asyncio.sleep(ASK_S)

    async def _listen(self, url: str) -> str:
        """Take in what it has; why not, if it could not be had."""
        try:
            async with asyncio.timeout(ANSWER_S), self._client.send("GET", url, PATH) as answer:
                content = await answer.read()
            if answer.status != 200:
                return f"it answers {answer.status}"
            said = decode_loads(content)
            if (
                said.head != self._router.head_name
            ):  # who is given the same list as all finds itself
                self._router.set_peer_load(url, said.workers)
        except TimeoutError:
            return f"no answer within {ANSWER_S} s"
        except (OSError, msgspec.DecodeError) as e:
            return str(e)
        return ""
