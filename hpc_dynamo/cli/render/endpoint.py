"""Instructions for the clients of an endpoint, as commands to paste into a shell."""

import getpass
import json
import os
import shlex
import socket
from urllib.parse import urlsplit

from hpc_dynamo.messages import Endpoint
from hpc_dynamo.run import Attempt

LAPTOP_PORT = 8000  # on the user's laptop
LOOPBACK = ("127.", "localhost", "[::1]")


def instructions(attempt: Attempt, endpoint: Endpoint) -> str:
    """Return base URL, key and commands for clients on the cluster and on a laptop."""
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
    other_name = "  (use -k instead of --cacert … if the certificate has another host name)"
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
    """Return the ssh command that forwards `LAPTOP_PORT` of a laptop to the endpoint.

    It connects to the login node that submitted the job, or to this machine. An endpoint on the
    loopback interface of another node needs a session on that node.
    """
    target = urlsplit(endpoint.url).netloc
    login = _with_user(_login_host())
    forward = f"ssh -L {LAPTOP_PORT}:{target}"
    if target.startswith(LOOPBACK) and endpoint.host != socket.gethostname():
        return f"{forward} -J {login} {_with_user(endpoint.host)}"
    return f"{forward} {login}"


def _with_user(host: str) -> str:
    """Return `USER@host`, or only the host for a user id without a name, as in a container."""
    try:
        return f"{getpass.getuser()}@{host}"
    except (KeyError, OSError):
        return host


def _login_host() -> str:
    name = socket.getfqdn(os.environ.get("SLURM_SUBMIT_HOST", ""))
    return socket.gethostname() if name.startswith("localhost") else name


def _example(model: str) -> str:
    messages = [{"role": "user", "content": "Hello!"}]
    return shlex.quote(json.dumps({"model": model, "messages": messages}, ensure_ascii=False))


def _scheme(endpoint: Endpoint) -> str:
    return urlsplit(endpoint.url).scheme


def _no_proxy(endpoint: Endpoint) -> list[str]:
    """Return the line that exempts the endpoint from the site's HTTP proxy, if there is one."""
    if not _proxied():
        return []
    host = urlsplit(endpoint.url).hostname
    return [f'  export no_proxy="{host},$no_proxy" NO_PROXY="{host},$NO_PROXY"']


def _proxied() -> bool:
    return any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ)
