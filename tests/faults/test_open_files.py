"""Runs with a limit of 1,024 open files, the usual default of login shells and Slurm."""

import json
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.serving.served import MODEL, serving
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import HANG_S, SIMULATOR, each_once, hpc_dynamo, latest, write_prompts

LIMIT = 1024
LAYOUT = (
    *("topology.prefill.workers=2", "topology.decode.workers=2", "engine.max_num_seqs=256"),
    "serve.frontend_processes=1",
)


@pytest.mark.slow_fault
def test_batch_with_512_slots(tmp_path: Path, fault: FaultRecorder) -> None:
    row = fault("ulimit -n 1024, batch of 600 with 512 slots", "all requests are answered")
    ids = write_prompts(tmp_path / "p.jsonl", 600, max_tokens=4)
    done = hpc_dynamo("batch", *SIMULATOR, *LAYOUT, "input=p.jsonl", cwd=tmp_path, open_files=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    log = latest(tmp_path / "runs/p").agent_log(0).read_text()
    assert "Too many open files" not in log
    each_once(tmp_path / "runs/p", ids)
    row.requests(len(ids))


def responses(url: str, key: str, count: int) -> Counter[bytes]:
    """Send requests at the same time, each on a connection of its own; return the status lines."""
    body = json.dumps({"model": MODEL, "prompt": "a " * 20, "max_tokens": 20}).encode()
    lines = (
        "POST /v1/completions HTTP/1.1", "Host: h", "Connection: close",
        f"Authorization: Bearer {key}", f"Content-Length: {len(body)}",
    )  # fmt: skip
    content = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    at = urlsplit(url)
    with ExitStack() as stack:
        links = list[socket.socket]()
        for _ in range(count):
            link = socket.create_connection((at.hostname or "", at.port or 0), HANG_S)
            links.append(stack.enter_context(link))
            # At once: in a full table, a connection without a key is closed after 2 s.
            link.sendall(content)
        return Counter(link.makefile("rb").readline() for link in links)


def test_endpoint_with_900_requests_at_once(tmp_path: Path, fault: FaultRecorder) -> None:
    row = fault("ulimit -n 1024, 900 requests at once, 512 slots", "all requests are answered")
    with serving(tmp_path, *LAYOUT, open_files=LIMIT) as served:
        answers = responses(served.url, served.key, 900)
        assert answers == {b"HTTP/1.1 200 OK\r\n": 900}
        log = served.attempt.frontend_log(0).read_text()
    assert "Too many open files" not in log
    row.requests(900)
