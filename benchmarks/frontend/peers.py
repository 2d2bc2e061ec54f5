"""Peer targets: NVIDIA Dynamo with its mocker, two Rust routers, and backends without a frontend.

Dynamo uses its own mock engine, which does not use HTTP. The routers use two ports of one nginx
with a fixed response, or of sse_server.py for streams.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.common.processes import ProcessExited, ProcessGroup, free_port
from benchmarks.common.provision import DYNAMO, SGLANG_ROUTER, VLLM_ROUTER, Environments
from benchmarks.common.workload import MODEL
from benchmarks.frontend import sse_server
from benchmarks.frontend.targets import BackendKind, TargetPids, wait_until_served

START_ATTEMPTS = 3  # another program may take a free port first
WORKERS = 2
PLANES = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")
SPEEDUP = 100_000.0  # makes the mocker's prefill negligible
MOCKER_STEP_S = 0.00685  # decode step at a speedup of 1, measured with 64 streams
NGINX = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 1m;
  keepalive_requests 1000000000; default_type application/json;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ {listen} location / {{ return 200 '{answer}'; }}
           location = /v1/chat/completions/render {{ return 200 '{rendered}'; }}
           location /v1/models {{ return 200 '{models}'; }} }}
}}
"""


class ProcessTarget:
    """Base of all targets: a group of processes, restarted with other ports if it fails."""

    key = ""
    uses_floor_backend = True

    def __init__(self, name: str, version: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.version = name, version
        self.group, self._pids = ProcessGroup(folder), TargetPids((), ())

    async def start(self) -> str:
        for _ in range(START_ATTEMPTS - 1):
            with suppress(ProcessExited):
                return await self._once()
        return await self._once()

    async def _once(self) -> str:
        try:
            url = await self.launch()
            await wait_until_served(url, self.key, self.group)
        except ProcessExited:
            await self.stop()
            raise
        return url

    async def launch(self) -> str:
        """Start the processes; return their URL. `pids` is valid afterwards."""
        raise NotImplementedError

    async def stop(self) -> None:
        await self.group.stop()

    def pids(self) -> TargetPids:
        return self._pids


class DynamoTarget(ProcessTarget):
    """Dynamo's HTTP frontend with the KV router and its mock engine.

    The mocker needs no time per prompt, and `step_s` per token.
    """

    on_floor = False

    def __init__(
        self, folder: Path, envs: Environments, model: Path, tokenizer: str, step_s: float
    ) -> None:
        name = "Dynamo" if tokenizer == "default" else f"Dynamo {tokenizer}"
        super().__init__(name, DYNAMO, folder)
        self._python, self._model = str(envs.dynamo / "bin/python"), str(model)
        self._tokenizer, self._step_s = tokenizer, step_s

    async def launch(self) -> str:
        port, store = free_port(), self.group.folder / f"kv-{free_port()}"
        store.mkdir()  # an empty store per start, for discovery
        env = {"DYN_FILE_KV": str(store), "DYN_LOG": "warn", "HF_HUB_OFFLINE": "1"}
        backend = await self.group.start("mocker", [*self._mocker(), *PLANES], env)
        frontend = await self.group.start("frontend", [*self._frontend(port), *PLANES], env)
        self._pids = TargetPids((frontend,), (backend,))
        return f"http://127.0.0.1:{port}"

    def _mocker(self) -> list[str]:
        words = [self._python, "-m", "dynamo.mocker", "--model-path", self._model]
        words += ["--model-name", MODEL, "--num-workers", "4", "--speedup-ratio", str(SPEEDUP)]
        slow = MOCKER_STEP_S / self._step_s / SPEEDUP if self._step_s else 1.0
        return [*words, "--decode-speedup-ratio", f"{slow:.9f}"]

    def _frontend(self, port: int) -> list[str]:
        words = [self._python, "-m", "dynamo.frontend", "--http-host", "127.0.0.1"]
        words += ["--http-port", str(port), "--router-mode", "kv"]
        return [*words, "--tokenizer", self._tokenizer]


class FixedBackend(ProcessTarget):
    """Fixed responses over HTTP, without a frontend."""

    def __init__(self, folder: Path, behind: BackendKind) -> None:
        name = "nginx" if behind is BackendKind.ANSWERS else "sse_server"
        super().__init__("backend alone", name, folder)
        self.kind = behind
        self.ports: list[int] = []

    async def launch(self) -> str:
        self.ports = [free_port() for _ in range(WORKERS)]
        argv = self._nginx() if self.kind is BackendKind.ANSWERS else self._sse_server()
        pid = await self.group.start("backend", argv)
        self._pids = TargetPids((pid,), ())
        return f"http://127.0.0.1:{self.ports[0]}"

    def _sse_server(self) -> list[str]:
        argv = [sys.executable, "-m", sse_server.__name__, *map(str, self.ports)]
        return [*argv, "--step-s", str(self.kind.step_s)]

    def _nginx(self) -> list[str]:
        listen = " ".join(f"listen 127.0.0.1:{port} backlog=1024;" for port in self.ports)
        answers = sse_server.fixed_answer(), sse_server.MODELS, sse_server.RENDERED
        answer, models, rendered = (sse_server.compact(a).decode() for a in answers)
        text = NGINX.format(
            folder=self.group.folder, listen=listen, answer=answer, models=models, rendered=rendered
        )
        file = self.group.folder / "nginx.conf"
        file.write_text(text)
        return ["nginx", "-c", str(file), "-e", "stderr"]


class RustRouterTarget(ProcessTarget):
    """Rust router without a tokenizer, with its cache-aware policy and a FixedBackend."""

    def __init__(
        self, folder: Path, version: str, argv: Sequence[str], backend: FixedBackend
    ) -> None:
        super().__init__(Path(argv[0]).name, version, folder)
        self._argv, self._backend = argv, backend

    async def launch(self) -> str:
        await self._backend.start()
        port, metrics = free_port(), free_port()
        words = [*self._argv, "--port", str(port), "--prometheus-port", str(metrics)]
        words += ["--policy", "cache_aware", "--worker-startup-check-interval", "1"]
        words += ["--worker-urls", *(f"http://127.0.0.1:{port}" for port in self._backend.ports)]
        pid = await self.group.start("router", words)
        self._pids = TargetPids((pid,), self._backend.pids().frontend)
        return f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        await self.group.stop()
        await self._backend.stop()


def vllm_router(folder: Path, envs: Environments, backend: FixedBackend) -> RustRouterTarget:
    argv = (str(envs.routers / "bin/vllm-router"), "--log-level", "warning")
    return RustRouterTarget(folder, VLLM_ROUTER, argv, backend)


def sglang_router(folder: Path, envs: Environments, backend: FixedBackend) -> RustRouterTarget:
    argv = (str(envs.routers / "bin/sglang-router"), "launch", "--log-level", "warn")
    return RustRouterTarget(folder, SGLANG_ROUTER, argv, backend)
