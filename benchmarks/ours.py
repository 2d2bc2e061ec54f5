"""This frontend as a serving job runs it, before workers that are not ours to start.

    python -m benchmarks.ours FOLDER FRONTENDS POLICY MODEL_PATH WORKER_URL…

The head's part of a job (router, frontend processes, view) without Slurm and agents; prints
the endpoint's address when it serves.
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import uvloop

from benchmarks.peers import Backend, Started
from benchmarks.systems import Pids
from benchmarks.workload import MODEL
from hpc_dynamo.config import Config, Device, Kind, Model, Policy, Pool, Role, Serve, Task, Topology
from hpc_dynamo.config import Engine as EngineConfig
from hpc_dynamo.config import Router as RouterConfig
from hpc_dynamo.head.serve import ServeWork
from hpc_dynamo.head.work import Job
from hpc_dynamo.http import Client
from hpc_dynamo.messages import WorkerReport, WorkerState
from hpc_dynamo.router import Router
from hpc_dynamo.run import Attempt, Run, Secrets
from hpc_dynamo.topology import plan

HOST = "127.0.0.1"
SEQUENCES = 4096  # a worker takes all that comes: what is measured is the way to it


class Ours(Started):
    """Head and frontend processes before a Backend, routing by the hashes of token ids."""

    def __init__(self, folder: Path, model: Path, frontends: int, backend: Backend) -> None:
        super().__init__(f"hpc-dynamo x{frontends}", version("hpc-dynamo"), folder)
        self._model, self._frontends, self._backend = model, frontends, backend

    async def launch(self) -> str:
        await self._backend.start()
        urls = [f"http://{HOST}:{port}" for port in self._backend.ports]
        words = [str(self.group.folder), str(self._frontends), "kv", str(self._model), *urls]
        pid = await self.group.start("head", [sys.executable, "-m", __name__, *words])
        self._pids = Pids((pid,), self._backend.pids().frontend)
        run = Run(self.group.folder / "runs" / "bench")
        while not (found := [a.endpoint() for a in run.attempts() if a.endpoint()]):
            self.group.check()
            await asyncio.sleep(0.1)  # a file is looked for
        self.key = run.api_key()
        endpoint = found[-1]
        assert endpoint
        return endpoint.url.removesuffix("/v1")

    async def stop(self) -> None:
        await self.group.stop()
        await self._backend.stop()


class Fixed:
    """Workers that are simply there; see head.work.Members."""

    address = HOST

    def __init__(self, urls: Sequence[str]) -> None:
        self.workers = {
            rank: WorkerReport(
                rank=rank,
                role=Role.aggregated,
                node=0,
                host=HOST,
                state=WorkerState.ready,
                url=url,
                models=(MODEL,),
                context_tokens=1 << 20,
            )
            for rank, url in enumerate(urls)
        }

    def in_order(self) -> tuple[WorkerReport, ...]:
        return tuple(self.workers.values())


async def head(attempt: Attempt, urls: Sequence[str]) -> None:
    """Until SIGTERM."""
    config, members = attempt.config(), Fixed(urls)
    router = Router.of(config)
    for worker in members.in_order():
        await router.join(worker.rank, worker.role, worker.url)
    async with Client.bearer(attempt.run.secrets().token) as client:
        work = asyncio.create_task(ServeWork(Job(attempt, config, router, members, client)).run())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
        await asyncio.wait([work])


def main() -> None:
    folder, frontends, policy, model, *urls = sys.argv[1:]
    config = Config(
        task=Task.serve,
        name="bench",
        engine=EngineConfig(device=Device.cpu, max_num_seqs=SEQUENCES),
        model=Model(path=model, name=MODEL),
        topology=Topology(kind=Kind.aggregated, aggregated=Pool(workers=1)),
        router=RouterConfig(policy=Policy(policy)),
        serve=Serve(host=HOST, frontends=int(frontends)),
    )
    run = Run(Path(folder) / "runs" / "bench")
    run.create(Secrets(token="engines", public="", private=""))
    uvloop.run(head(run.new_attempt(config, plan(config)), urls))


if __name__ == "__main__":
    main()
