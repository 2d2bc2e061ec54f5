"""Head of `hpc-dynamo route`: an endpoint in front of external engines, without agents or Slurm."""

import asyncio

from hpc_dynamo.head.lifecycle import JobLifecycle
from hpc_dynamo.head.membership.external import LOOPBACK, ExternalWorkers
from hpc_dynamo.head.membership.peer_heads import PeerHeads
from hpc_dynamo.head.workloads.serve import ServeWorkload
from hpc_dynamo.head.workloads.workload import HeadContext, model_routes
from hpc_dynamo.http import HttpClient
from hpc_dynamo.messages import Outcome
from hpc_dynamo.regular_file import read_key
from hpc_dynamo.run import Attempt


class Standalone(JobLifecycle):
    """Head in front of the engines of `config.route`."""

    def __init__(self, attempt: Attempt, address: str = LOOPBACK) -> None:
        super().__init__(attempt)
        self._address = address

    async def run(self) -> Outcome:
        """Serve until the endpoint ends. The engines keep running."""
        key = self._attempt.engine_key()
        async with HttpClient.bearer(key) as http, self._peer_client() as peer_client:
            async with asyncio.TaskGroup() as group:
                routes = model_routes(self._config, http)
                (route,) = routes.values()
                members = ExternalWorkers(self._config, route.router, http, group, self._address)
                context = HeadContext(self._attempt, self._config, routes, members, http)
                workload = self._workload = ServeWorkload(context)
                peers = PeerHeads(route.router, self._config.route.peers, peer_client)
                background = [
                    group.create_task(members.watch(), name="watch"),
                    group.create_task(self._write_status(members, None), name="status"),
                    group.create_task(peers.run(), name="peers"),
                    group.create_task(route.scraper.run(), name="scrape"),
                ]
                task = group.create_task(self._run_workload(workload), name="workload")
                outcome = await self._wait_for_outcome(task)
                for each in background:
                    each.cancel()
        return self._conclude(members, None, outcome)

    def _peer_client(self) -> HttpClient:
        """Return a client with the API key, which all heads share."""
        file = self._config.serve.api_key_file
        return HttpClient.bearer(read_key(file) if file else "")
