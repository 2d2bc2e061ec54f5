"""Runs of `hpc-dynamo serve` with real vLLM or SGLang workers on this machine's CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai

from hpc_dynamo.demo.engine_environment import DemoEngine
from hpc_dynamo.run import Run
from tests.support.runs import latest, until

MODEL = "smol"
READY_S = 150.0  # on a quiet machine, see `until`
SERVERS = (b"vllm.entrypoints.openai.api_server", b"hpc_dynamo_sglang")  # modules
POLL_S = 0.25  # while an engine starts
STOP_S = 60.0
REQUEST_S = 200.0  # on a busy machine

# vLLM's choice on GPUs for a worker of one process. On CPUs it starts another process, only to set
# the number of OpenMP threads. conf/engine/vllm-cpu.yaml sets it, and a start costs 7 core-s less.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
# 12,288 tokens. By default each engine holds 1 GiB of blocks, and ten engines run at the same time.
SMALL_CACHE = "engine.args.num-gpu-blocks-override=96"
SMALL_ENGINE = (f"engine.args.distributed-executor-backend={ONE_PROCESS}", SMALL_CACHE)


@dataclass
class Served:
    """A serving run."""

    url: str
    key: str
    token: str
    log: Path  # log of the agent

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.key, max_retries=0, timeout=REQUEST_S)

    def get(self, url: str, key: str) -> str:
        with urlopen(
            Request(url, headers={"Authorization": f"Bearer {key}"}), timeout=REQUEST_S
        ) as got:
            return str(got.read().decode())

    def post(self, url: str, key: str, body: object = None) -> Any:
        content = b"" if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        with urlopen(Request(url, content, headers, method="POST"), timeout=REQUEST_S) as got:
            return json.loads(got.read() or b"null")

    def rows(self) -> list[dict[str, Any]]:
        """Return the workers as the endpoint lists them."""
        return list(json.loads(self.get(f"{self.url}/workers", self.key))["data"])

    def workers(self) -> dict[str, str]:
        """Return a URL by role."""
        return {row["role"]: row["url"] for row in self.rows()}

    def tokens(self, role: str, prompt: str, model: str = MODEL) -> list[int]:
        url = f"{self.workers()[role]}/tokenize"
        return list(self.post(url, self.token, {"model": model, "prompt": prompt})["tokens"])

    def metric(self, role: str, name: str) -> float:
        text = self.get(f"{self.workers()[role]}/metrics", self.token)
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@contextmanager
def serving(engine: DemoEngine, folder: Path, *words: str) -> Iterator[Served]:
    """Yield `hpc-dynamo serve` of the small model, from its endpoint to the end of its engines."""
    own = [f"engine.python={engine.python}", f"model.path={engine.model}", f"model.name={MODEL}"]
    own += SMALL_ENGINE if engine.config == "vllm-cpu" else ()
    argv = [sys.executable, "-m", "hpc_dynamo", "serve", f"engine={engine.config}", "name=v"]
    argv += ["cluster.launcher=local", *own, *words]
    with (folder / "serve.log").open("wb") as out:
        process = subprocess.Popen(argv, cwd=folder, stdout=out, stderr=out, env=dict(os.environ))
    try:
        found = _endpoint(Run(folder / "runs" / "v"), process, folder / "serve.log")
        yield found
        found.client.close()
    finally:
        process.terminate()
        process.wait(timeout=STOP_S)


def _endpoint(run: Run, process: subprocess.Popen[bytes], log: Path) -> Served:
    def found() -> Served | None:
        assert process.poll() is None, log.read_text()
        endpoint = latest(run.path).endpoint() if run.attempts() else None
        if endpoint is None:
            return None
        token, agent_log = run.secrets().token, latest(run.path).agent_log(0)
        return Served(endpoint.url, run.api_key(), token, agent_log)

    served: Served = until(f"endpoint, see {log}", found, READY_S, POLL_S)
    return served


def engine_pid(url: str) -> int:
    """Return the process id of the server at a URL, by its command line."""
    port = url.rsplit(":", 1)[1]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if words[1:2] == [b"-m"] and words[2] in SERVERS and port.encode() in words:
                return int(entry.parent.name)
    raise AssertionError(f"no server on port {port}")


def process_of(url: str, title: str) -> int:
    """Return the process of the engine at a URL whose title begins so, as VLLM::EngineCore."""
    session = os.getsid(engine_pid(url))
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            pid = int(entry.parent.name)
            if entry.read_text().startswith(title) and os.getsid(pid) == session:
                return pid
    raise AssertionError(f"the engine at {url} has no process {title}")


def send(
    url: str, key: str, body: bytes | None, method: str = "POST", **more: str
) -> tuple[int, Any]:
    """Return the status and the JSON content of a response. `more` are headers."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **more}
    request = Request(url, body, headers, method=method)
    try:
        with urlopen(request, timeout=REQUEST_S) as got:
            return got.status, json.loads(got.read())
    except HTTPError as e:
        return e.code, json.loads(e.read())
