"""What people see of a serving run: its load, and how to reach its endpoint."""

import getpass
import json
import os
import shlex
import socket
from urllib.parse import urlsplit

from rich.markup import escape

from hpc_dynamo.cli.render.table import HOST_WIDTH, Column, ResponsiveTable
from hpc_dynamo.messages import (
    Endpoint,
    ExtraJobStatus,
    ModelStatus,
    PlannerStatus,
    Quantiles,
    Status,
    Successor,
    Traffic,
    WorkerLoad,
    WorkerReport,
)
from hpc_dynamo.run import Attempt

LAPTOP_PORT = 8000  # on the user's own machine
LOOPBACK = ("127.", "localhost", "[::1]")


def load_table(status: Status, model: str = "") -> ResponsiveTable:
    """How busy each rank of a model is. Latencies are the engines' own, p50 and p99 in ms."""
    figures = ("active", "run", "wait", "KV", "hits", "TTFT ms", "ITL ms", "served")
    who = ("rank", "role", Column("node", fold=HOST_WIDTH), "state")
    table = ResponsiveTable(*who, *(Column(name, right=True) for name in figures), plain=True)
    known = {load.rank: load for load in status.loads}
    for worker in (w for w in status.workers if w.model == model):
        load = known.get(worker.rank)
        cells = _cells(load) if load else ["-"] * len(figures)
        table.add_row(*map(escape, (*_who(worker), *cells)))
    return table


def _who(worker: WorkerReport) -> tuple[str, str, str, str]:
    return str(worker.rank), str(worker.role), worker.host, str(worker.state)


def _cells(load: WorkerLoad) -> list[str]:
    counts = [str(n) for n in (load.active, load.running, load.waiting)]
    shares = [f"{share:.0%}" for share in (load.kv_usage, load.cache_hit_rate)]
    return [*counts, *shares, _ms(load.ttft), _ms(load.itl), str(load.served)]


def _ms(q: Quantiles) -> str:
    return f"{1000 * q.p50:.0f}/{1000 * q.p99:.0f}" if q.count else "-"


def traffic_line(t: Traffic) -> str:
    """One line for a log."""
    return (
        f"{t.requests} requests, {t.rate_hz:.1f}/s, {t.active} active, {t.queued} queued, "
        f"{t.refused} refused, {t.failed} failed"
    )


def model_line(model: str, known: ModelStatus | None) -> str:
    """One of several models, and how it is."""
    if known is None:
        return f"model {model}"
    how = f"refused, {known.lost}" if known.lost else traffic_line(known.traffic)
    return f"model {model}: {how}"


def models_text(endpoint: Endpoint) -> str:
    return f"models {', '.join(endpoint.models)}" if endpoint.models else f"model {endpoint.model}"


def planner_line(p: PlannerStatus) -> str:
    """What the planner wants of the load, and what it has done."""
    moving = f", moving {', '.join(map(str, p.changing))}" if p.changing else ""
    short = f"; {p.shortfall}" if p.shortfall else ""
    return (
        f"planner: wants {p.prefill} prefill and {p.decode} decode for {p.rate_hz:.1f}/s"
        f"{moving}; {p.role_changes} flips, {p.failed_role_changes} failed; {p.reason}{short}"
    )


def extra_job_line(job: ExtraJobStatus) -> str:
    """A further job and what it waits for."""
    ranks, name = ", ".join(map(str, job.ranks)), job.job_id or "being submitted"
    detail = f": {job.detail}" if job.detail else ""
    return f"further job {name} {job.state}, {job.nodes} node(s), {job.role} {ranks}{detail}"


def successor_line(s: Successor) -> str:
    """Who takes over, and how far that is."""
    if not s.attempt:
        return f"no successor yet: {s.detail}"
    where = f" at {s.url}" if s.ready else ""
    return f"handing over to attempt {s.attempt}, job {s.job_id}{where}: {s.detail}"


def instructions(attempt: Attempt, endpoint: Endpoint) -> str:
    """All that a client needs, in lines to be pasted into a shell."""
    key, run = shlex.quote(endpoint.key_file), shlex.quote(str(attempt.run.path.absolute()))
    url = endpoint.url
    cert = f" --cacert {shlex.quote(attempt.config().serve.tls_cert)}" if endpoint.tls else ""
    proxy = " --noproxy '*'" if _proxied() else ""
    head = '-H "Authorization: Bearer $(cat ' + key + ')" -H "Content-Type: application/json"'
    answers, model = f"{endpoint.model} answers", ""
    if endpoint.models:
        answers = f"{', '.join(endpoint.models)} answer"
        model = f" --model {shlex.quote(endpoint.model)}"
    here = " (this machine)" if endpoint.host == socket.gethostname() else ""
    other_name = "  (-k in place of --cacert … where the certificate is for another name)"
    rows = [
        "",
        f"{answers} on {endpoint.host}{here}",
        f"  base URL: {url}",
        f"  key:      cat {key}",
        "try it:",
        f"  hpc-dynamo chat {run}{model}",
        f"  curl{proxy}{cert} {url}/chat/completions {head} -d {_example(endpoint.model)}",
        *([other_name] if endpoint.tls else []),
        "for OpenAI clients:",
        f'  export OPENAI_BASE_URL={url} OPENAI_API_KEY="$(cat {key})"',
        *_no_proxy(endpoint),
        f"from your laptop, where the base URL is {_scheme(endpoint)}://localhost:{LAPTOP_PORT}/v1:",
        f"  {ssh_tunnel(endpoint)}",
        "",
    ]
    return "\n".join(rows)


def ssh_tunnel(endpoint: Endpoint) -> str:
    """The ssh command that brings the endpoint to `LAPTOP_PORT` of a laptop.

    It goes through the login node: the one that the job came from, or else this machine. An
    endpoint on the loopback of another node needs a session there.
    """
    target = urlsplit(endpoint.url).netloc
    gate = f"{getpass.getuser()}@{_login_host()}"
    forward = f"ssh -L {LAPTOP_PORT}:{target}"
    if target.startswith(LOOPBACK) and endpoint.host != socket.gethostname():
        return f"{forward} -J {gate} {getpass.getuser()}@{endpoint.host}"
    return f"{forward} {gate}"


def _login_host() -> str:
    name = socket.getfqdn(os.environ.get("SLURM_SUBMIT_HOST", ""))
    return socket.gethostname() if name.startswith("localhost") else name


def _example(model: str) -> str:
    messages = [{"role": "user", "content": "Hello!"}]
    return shlex.quote(json.dumps({"model": model, "messages": messages}, ensure_ascii=False))


def _scheme(endpoint: Endpoint) -> str:
    return urlsplit(endpoint.url).scheme


def _no_proxy(endpoint: Endpoint) -> list[str]:
    """Sites set a proxy for the way out; clients would ask it for our own nodes too."""
    if not _proxied():
        return []
    host = urlsplit(endpoint.url).hostname
    return [f'  export no_proxy="{host},$no_proxy" NO_PROXY="{host},$NO_PROXY"']


def _proxied() -> bool:
    return any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ)
