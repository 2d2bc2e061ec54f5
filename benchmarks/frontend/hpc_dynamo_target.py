"""Target: hpc-dynamo's frontend in front of external workers.

    python -m benchmarks.frontend.hpc_dynamo_target FOLDER FRONTENDS MIGRATIONS POLICY MODEL_PATH \
        WORKER_URL…

Runs the processes of `hpc-dynamo route`: router and frontends.
"""

import asyncio
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import uvloop

from benchmarks.common.workload import MODEL
from benchmarks.frontend.peers import FixedBackend, ProcessTarget
from benchmarks.frontend.targets import TargetPids
from hpc_dynamo.config import Config, Model, Policy, Route, Serve, Task, resolve_route
from hpc_dynamo.config import Engine as EngineConfig
from hpc_dynamo.config import Router as RouterConfig
from hpc_dynamo.head.standalone import Standalone
from hpc_dynamo.run import Attempt, Run, Secrets
from hpc_dynamo.topology import plan

HOST = "127.0.0.1"
SEQUENCES = 4096  # workers without a limit, since the path to them is measured


class HpcDynamoTarget(ProcessTarget):
    """Head and frontend processes in front of a FixedBackend, with KV-aware routing."""

    def __init__(
        self, folder: Path, model: Path, frontends: int, backend: FixedBackend,
        migrations: int = Serve.migrations,
    ) -> None:  # fmt: skip
        super().__init__(f"hpc-dynamo x{frontends}", version("hpc-dynamo"), folder)
        self._model, self._frontends, self._backend = model, frontends, backend
        self._migrations = migrations

    async def launch(self) -> str:
        await self._backend.start()
        urls = [f"http://{HOST}:{port}" for port in self._backend.ports]
        words = [str(self.group.folder), str(self._frontends), str(self._migrations)]
        words += ["kv", str(self._model), *urls]
        pid = await self.group.start("head", [sys.executable, "-m", __name__, *words])
        self._pids = TargetPids((pid,), self._backend.pids().frontend)
        run = Run(self.group.folder / "runs" / "bench")
        while not (found := [a.endpoint() for a in run.attempts() if a.endpoint()]):
            self.group.check()
            await asyncio.sleep(0.1)  # polls for a file
        self.key = run.api_key()
        endpoint = found[-1]
        assert endpoint
        return endpoint.url.removesuffix("/v1")

    async def stop(self) -> None:
        await self.group.stop()
        await self._backend.stop()


async def run_head(attempt: Attempt) -> None:
    """Run the head until SIGTERM."""
    standalone = Standalone(attempt, HOST)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, standalone.interrupt)
    await standalone.run()


def main() -> None:
    folder, frontends, migrations, policy, model, *urls = sys.argv[1:]
    wanted = Config(
        task=Task.serve,
        name="bench",
        engine=EngineConfig(max_num_seqs=SEQUENCES),
        model=Model(path=model, name=MODEL),
        router=RouterConfig(policy=Policy(policy)),
        serve=Serve(host=HOST, frontend_processes=int(frontends), migrations=int(migrations)),
        route=Route(workers=tuple(urls)),
    )
    config = resolve_route(wanted)
    run = Run(Path(folder) / "runs" / "bench")
    run.create(Secrets(token="engines", public="", private=""))
    uvloop.run(run_head(run.new_attempt(config, plan(config))))


if __name__ == "__main__":
    main()
