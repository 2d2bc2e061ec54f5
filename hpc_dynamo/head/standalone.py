"""An endpoint before engines that somebody else started: no agents, and nothing of Slurm."""

import asyncio
from pathlib import Path

from hpc_dynamo.head.lifecycle import JobLifecycle
from hpc_dynamo.head.membership.external import LOOPBACK, ExternalWorkers
from hpc_dynamo.head.membership.peer_heads import PeerHeads
from hpc_dynamo.head.workloads.serve import ServeWorkload
from hpc_dynamo.head.workloads.workload import HeadContext, model_routes
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import Outcome
from hpc_dynamo.run import Attempt


class Standalone(JobLifecycle):
    """One attempt before the engines of `config.route`."""

    def __init__(self, attempt: Attempt, address: str = LOOPBACK) -> None:
        super().__init__(attempt)
        self._address = address

    async def run(self) -> Outcome:
        """Returns when the endpoint has ended; the engines go on."""
        key = self._attempt.engine_key()
        async with HttpClient.bearer(key) as http, self._among_heads() as heads:
            async with asyncio.TaskGroup() as group:
                found = model_routes(self._config, http)
                (lane,) = found.values()
                members = ExternalWorkers(self._config, lane.router, http, group, self._address)
                job = HeadContext(self._attempt, self._config, found, members, http)
                made = self._work = ServeWorkload(job)
                peers = PeerHeads(lane.router, self._config.route.peers, heads)
                tasks = [
                    group.create_task(members.watch(), name="watch"),
                    group.create_task(self._show(members, None), name="status"),
                    group.create_task(peers.run(), name="peers"),
                    group.create_task(lane.scraper.run(), name="scrape"),
                ]
                outcome = await self._over(group.create_task(self._finish(made), name="work"))
                for background in tasks:
                    background.cancel()
        return self._conclude(members, None, outcome)

    def _among_heads(self) -> HttpClient:
        """Presents the API key that all of them have."""
        file = self._config.serve.api_key_file
        return HttpClient.bearer(Path(file).read_text().strip() if file else "")
