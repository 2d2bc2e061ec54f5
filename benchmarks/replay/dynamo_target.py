"""NVIDIA Dynamo as a target: its frontend and router with its mock engines."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from benchmarks.common.processes import free_port
from benchmarks.common.provision import DYNAMO
from benchmarks.common.workload import MODEL
from benchmarks.frontend.peers import PLANES, ProcessTarget
from benchmarks.frontend.targets import TargetPids
from benchmarks.replay.engine import write_mocker
from benchmarks.replay.results import Prefix
from benchmarks.replay.targets import Running, Setting, Start, look
from benchmarks.replay.trace import ENGINE_BLOCK
from hpc_dynamo.config import TopologyKind
from hpc_dynamo.http import HttpClient

MODES = ("kv", "round-robin")
OPTION = "dynamo."  # prefix of an option of its frontend
COUNTER = "dynamo_component_router_kv_selected_cached_prefix_tokens_total"
SELECTED = re.compile(rf'^{COUNTER}\{{.*phase="prefill".*\}} (\S+)$', re.M)


def dynamo(setting: Setting, env: Path, mode: str, words: Sequence[str] = ()) -> Start:
    """Return Dynamo from the environment `env` in a router mode.

    `words` are options of its frontend, such as `dynamo.router-temperature=0.5`.
    """

    @asynccontextmanager
    async def start(folder: Path, kind: TopologyKind) -> AsyncIterator[Running]:
        system = Mockers(folder, env, setting, kind, mode, words)
        try:
            url = await system.start()
            async with HttpClient() as http:
                pids = (*system.pids().frontend, *system.pids().backend)
                yield Running(url, "", pids, partial(system.prefix, http, url))
        finally:
            await asyncio.shield(system.stop())

    return start


class Mockers(ProcessTarget):
    """Dynamo's frontend and one mocker process per role, with all workers of that role."""

    def __init__(
        self,
        folder: Path,
        env: Path,
        setting: Setting,
        kind: TopologyKind,
        mode: str,
        words: Sequence[str],
    ) -> None:
        super().__init__(f"Dynamo {mode}", DYNAMO, folder)
        self._python, self._setting = str(env / "bin/python"), setting
        self._options = [f"--{word.removeprefix(OPTION)}" for word in words]
        self._kind, self._mode = kind, mode

    async def launch(self) -> str:
        port, store = free_port(), self.group.folder / f"kv-{free_port()}"
        store.mkdir()  # empty for every start: the processes discover each other in it
        env = {"DYN_FILE_KV": str(store), "DYN_LOG": "warn", "HF_HUB_OFFLINE": "1"}
        table = self.group.folder / "timing.npz"
        write_mocker(self._setting.engine.timing(self._setting.scale, self._kind), table)
        backends = list[int]()
        for role, count in self._setting.pools(self._kind).items():
            argv = [*self._mocker(role, count, table), *PLANES]
            backends.append(await self.group.start(f"mocker-{role}", argv, env))
        frontend = await self.group.start("frontend", [*self._frontend(port), *PLANES], env)
        self._pids = TargetPids((frontend,), tuple(backends))
        return f"http://127.0.0.1:{port}"

    def _mocker(self, role: str, count: int, table: Path) -> list[str]:
        engine, scale = self._setting.engine, self._setting.scale
        options = {
            "model-path": self._setting.model,
            "model-name": MODEL,
            "num-workers": count,
            "block-size": ENGINE_BLOCK,
            "num-gpu-blocks-override": engine.blocks(scale),
            "max-num-seqs": engine.sequences,
            "max-num-batched-tokens": engine.step_tokens,
            "planner-profile-data": table,
            "speedup-ratio": scale.compress,
            "kv-transfer-bandwidth": 0,
            "disaggregation-mode": "agg" if role == "aggregated" else role,
        }
        said = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        return [self._python, "-m", "dynamo.mocker", *said]

    def _frontend(self, port: int) -> list[str]:
        least = min(self._setting.pools(self._kind).values())
        return [
            *(self._python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1"),
            *("--http-port", str(port), "--router-mode", self._mode),
            *("--router-min-initial-workers", str(least)),
            *self._options,
        ]

    async def prefix(self, http: HttpClient, url: str, asked: int) -> Prefix | None:
        """Return the prompt tokens and cached tokens.

        If disaggregated, they are the router's count for prefill workers, since the usage in
        responses covers only decode workers.
        """
        if self._kind is TopologyKind.aggregated:
            return None
        page = (await look(http, url, "/metrics")).decode()
        hits = SELECTED.findall(page)
        return Prefix(asked if hits else 0, sum(map(float, hits)), "router" if hits else "nobody")
