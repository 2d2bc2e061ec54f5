"""An endpoint before engines that somebody else started: no agents, and nothing of Slurm."""

import asyncio

from hpc_dynamo.head.course import Course
from hpc_dynamo.head.probed import LOOPBACK, Probed
from hpc_dynamo.head.serve import ServeWork
from hpc_dynamo.head.work import Job
from hpc_dynamo.http import Client
from hpc_dynamo.messages import Outcome
from hpc_dynamo.router import Router
from hpc_dynamo.run import Attempt


class Standalone(Course):
    """One attempt before the engines of `config.route`; the run's token is their key."""

    def __init__(self, attempt: Attempt, address: str = LOOPBACK) -> None:
        super().__init__(attempt)
        self._address = address

    async def run(self) -> Outcome:
        """Returns when the endpoint has ended; the engines go on."""
        token = self._attempt.run.secrets().token
        async with Client.bearer(token) as http, asyncio.TaskGroup() as group:
            router = Router.of(self._config)
            members = Probed(self._config, router, http, group, self._address)
            made = self._work = ServeWork(Job(self._attempt, self._config, router, members, http))
            tasks = [
                group.create_task(members.watch(), name="watch"),
                group.create_task(self._show(members, None), name="status"),
            ]
            work = group.create_task(self._finish(made), name="work")
            outcome = await self._over(work)
            for background in tasks:
                background.cancel()
        return self._conclude(members, None, outcome)
