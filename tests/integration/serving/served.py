"""Run of `hpc-dynamo serve` on this machine, with clients."""

import http.client
import json
import os
import signal
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import trustme

from hpc_dynamo import launch
from hpc_dynamo.run import Attempt, Run
from tests.support.runs import HANG_S, SIMULATOR, hpc_dynamo, until

MODEL = "simulated"
TLS = ("serve.tls_cert=cert.pem", "serve.tls_key=key.pem")
Headers = Mapping[str, str]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


HEAD = "hpc_dynamo.tasks.head"
LOADS = (
    *("vllm:num_requests_running", "vllm:num_requests_waiting"),
    *("sglang:num_running_reqs", "sglang:num_queue_reqs"),
)


@dataclass(frozen=True)
class Served:
    """Serving run. `tls` is the context for clients if it has a certificate."""

    attempt: Attempt
    tls: ssl.SSLContext | None = field(default=None)

    @cached_property
    def url(self) -> str:
        endpoint = self.attempt.endpoint()
        assert endpoint
        return endpoint.url

    @cached_property
    def key(self) -> str:
        endpoint = self.attempt.endpoint()
        assert endpoint
        return Path(endpoint.key_file).read_text().strip()

    @cached_property
    def client(self) -> openai.OpenAI:
        verify = self.tls or True
        http_client = openai.DefaultHttpxClient(verify=verify)
        return openai.OpenAI(
            base_url=self.url,
            api_key=self.key,
            max_retries=0,
            timeout=HANG_S,
            http_client=http_client,
        )

    def asynchronous(self) -> openai.AsyncOpenAI:
        """Return a client of the caller's event loop; an `async with` closes it."""
        http_client = openai.DefaultAsyncHttpxClient(verify=self.tls or True)
        return openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self.key,
            max_retries=0,
            timeout=HANG_S,
            http_client=http_client,
        )

    def connect(self) -> http.client.HTTPConnection:
        host, port = urlsplit(self.url).hostname or "", urlsplit(self.url).port
        if self.tls:
            return http.client.HTTPSConnection(host, port, timeout=HANG_S, context=self.tls)
        return http.client.HTTPConnection(host, port, timeout=HANG_S)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Headers | None = None,
    ) -> Reply:
        """Send a request on a new connection, with the key unless `headers` are given."""
        connection = self.connect()
        try:
            own = {"Authorization": f"Bearer {self.key}"} if headers is None else headers
            connection.connect()
            with suppress(ConnectionError):  # rejected before all was sent; the response is there
                connection.request(method, path, body, dict(own))
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, fields, answer.read())
        finally:
            connection.close()

    def post(self, path: str, body: object, headers: Headers | None = None) -> Reply:
        return self.ask("POST", path, json.dumps(body).encode(), headers)

    def metrics(self) -> dict[str, float]:
        """Return /metrics of the job by name with labels."""
        reply = self.ask("GET", "/metrics")
        assert reply.status == 200
        return _parse(reply.body)

    def wait(self) -> None:
        """Wait until it serves."""
        attempt = self.attempt
        until("the endpoint", lambda: attempt.outcome() or attempt.endpoint(), 60)
        assert attempt.outcome() is None, attempt.outcome()
        until("all workers", lambda: self.ask("GET", "/ready").status == 200, 60)

    def metrics_now(self) -> dict[str, float]:
        """Return metrics that are newer than this call: they count a request made in it."""
        name = 'hpc_dynamo_requests_total{path="other",status="404"}'
        before = self.metrics().get(name, 0.0)
        assert self.ask("GET", "/marker").status == 404
        page = dict[str, float]()
        while page.get(name, 0.0) <= before:
            page = until("newer figures", self.metrics, 10)
        return page

    # Engines.

    def workers(self) -> dict[str, list[dict[str, Any]]]:
        """Return the ready workers by role."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.ask("GET", "/v1/workers").json["data"]:
            if row["state"] == "ready":
                found.setdefault(row["role"], []).append(row)
        return found

    def engines(self) -> dict[str, dict[str, float]]:
        """Return metrics of the first worker per role. Engines accept only the run's token."""
        return {role: self.engine(rows[0]["url"]) for role, rows in self.workers().items()}

    def engine(self, url: str) -> dict[str, float]:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=HANG_S)
        try:
            token = self.attempt.run.secrets().token
            connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            assert answer.status == 200
            return {name.partition("{")[0]: v for name, v in _parse(answer.read()).items()}
        finally:
            connection.close()

    def loads(self) -> dict[str, float]:
        """Return the requests in each engine that answers, by URL."""
        found = dict[str, float]()
        for row in chain.from_iterable(self.workers().values()):
            with suppress(ConnectionError):  # the view of the head may be a second old
                figures = self.engine(row["url"])
                found[row["url"]] = sum(figures.get(name, 0.0) for name in LOADS)
        return found

    def busy(self) -> float:
        """Return the requests in all engines."""
        return sum(self.loads().values())

    # Processes.

    @property
    def task(self) -> int:
        """Process id of the task of node 0."""
        return next(self.attempt.nodes()).pid

    @property
    def head(self) -> int:
        """Process id of the head, a child of that task. Waits for one that is being restarted."""
        return int(until("a head", lambda: next(self._heads(), 0)))

    def _heads(self) -> Iterator[int]:
        return (pid for pid, words in self._processes() if words[1:3] == ["-m", HEAD])

    def pid_of(self, url: str) -> int:
        """Return the process that listens at a worker's URL."""
        port = f"{urlsplit(url).port}"
        return next(pid for pid, words in self._processes() if port in words)

    def frontends(self) -> dict[int, int]:
        """Return the process ids of the frontends by index."""
        rows = [(words, pid) for pid, words in self._processes() if "hpc_dynamo.frontend" in words]
        return {int(words[words.index("hpc_dynamo.frontend") + 2]): pid for words, pid in rows}

    def processes(self) -> list[int]:
        """Return the remaining processes of the run."""
        return [pid for pid, _ in self._processes()]

    def _processes(self) -> Iterator[tuple[int, list[str]]]:
        """Return the agents of this run and their child processes."""
        parents, words = dict[int, int](), dict[int, list[str]]()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (folder / "cmdline").read_bytes().decode(errors="replace")
                words[int(folder.name)] = command.split("\0")
                after_name = (folder / "stat").read_text().rpartition(")")[2]
                parents[int(folder.name)] = int(after_name.split()[1])
        own = str(self.attempt.path)
        for pid in words:
            above, line = pid, list[str]()
            while above in words:
                line += words[above]
                above = parents.get(above, 0)
            if words[pid] != [""] and any(own in word for word in line):
                yield pid, words[pid]

    def stop(self) -> None:
        """Stop the run; it may have ended already."""
        job = launch.find_job(self.attempt)
        assert job
        job.stop()
        until("the run has ended", lambda: not self.processes(), 30)


def _parse(page: bytes) -> dict[str, float]:
    rows = (line.rpartition(" ") for line in page.decode().splitlines() if line[:1] != "#")
    return {name: float(value) for name, _, value in rows if name}


@contextmanager
def serving(
    folder: Path, *words: str, tls: ssl.SSLContext | None = None, open_files: int | None = None
) -> Iterator[Served]:
    """Start a run and yield it when it is ready; its processes end with the block."""
    command = ("serve", *SIMULATOR, *words, "name=s", "--detach")
    done = hpc_dynamo(*command, cwd=folder, open_files=open_files)
    assert done.returncode == 0, done.stdout + done.stderr
    served = Served(Run(folder / "runs" / "s").attempts()[-1], tls)
    try:
        served.wait()
        yield served
    finally:
        if "client" in vars(served):
            served.client.close()
        served.stop()


def serves(served: Served) -> bool:
    """Return True if the endpoint is ready. No process may listen while the head restarts."""
    with closing(served.connect()) as connection, suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    return False


def restart_head(served: Served) -> None:
    """Kill the head and wait until the next one serves."""
    killed = served.head
    kill(killed)
    until("another head", lambda: served.head != killed)
    until("it serves", lambda: serves(served))


def kill(pid: int) -> None:
    """Wait until its sockets are closed."""
    os.kill(pid, signal.SIGKILL)
    until("it is dead", lambda: _dead(pid), 10)


def _dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def certified(folder: Path) -> ssl.SSLContext:
    """Write TLS files for this machine; return a context for clients that trust them."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    return trusted
