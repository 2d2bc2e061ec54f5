"""`hpc-dynamo status` for run folders as a head writes them. The commands that it prints work."""

import json
import re
import shlex
import socket
import subprocess
import time
from pathlib import Path

import pytest

from hpc_dynamo.cli.render.endpoint import instructions, ssh_tunnel
from hpc_dynamo.messages import Endpoint, Progress, Status
from hpc_dynamo.run import Attempt, write_json
from tests.support.runs import HANG_S, hpc_dynamo
from tests.support.simulator import MODEL, simulator
from tests.support.terminal import (
    Call,
    announce,
    end,
    ends,
    going_on,
    new_run,
    on_a_terminal,
    printed,
    refused,
    report,
    rest_of,
)

HERE = socket.gethostname()


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """A serving run whose folder name has characters that a shell must quote."""
    return new_run(tmp_path / "runs" / 'it\'s a "run" ü')


def figures(text: str) -> list[list[str]]:
    """Return the cells of each row of the table."""
    return [line.split() for line in text.splitlines() if line.lstrip().startswith(("0 ", "1 "))]


def test_status_of_a_serving_run_shows_load_and_endpoint(attempt: Attempt, call: Call) -> None:
    report(attempt)
    announce(attempt, "http://10.0.0.7:8001/v1")
    with going_on(attempt):
        text = printed(call("status"))
    head = next(line for line in text.splitlines() if "rank" in line)
    assert head.split() == [
        *("rank", "role", "node", "state", "active", "run", "wait", "KV", "hits"),
        *("TTFT", "ms", "ITL", "ms", "served"),
    ]
    assert figures(text) == [
        ["0", "prefill", "n7", "ready", "3", "2", "1", "42%", "88%", "12/46", "4/9", "117"],
        ["1", "decode", "n8", "failed", *"--------"],
    ]
    assert "attempt 1: running (" in text
    assert "serving, 1 h 02 min of walltime left" in text
    assert "120 requests, 4.2/s, 3 active, 5 queued, 7 refused, 2 failed" in text
    assert "endpoint http://10.0.0.7:8001/v1, model scripted" in text
    assert "curl http://10.0.0.7:8001/v1/chat/completions" in text


def test_status_of_an_ended_run_has_no_client_instructions(attempt: Attempt, call: Call) -> None:
    report(attempt)
    announce(attempt, "http://10.0.0.7:8001/v1")
    end(attempt, "stopped while serving")
    text = printed(call("status"))
    assert "ended: stopped while serving" in text
    assert text.count("ended: ") == 1, "it is printed once"
    assert "10.0.0.7" not in text
    assert "walltime" not in text


def test_endpoint_of_an_ended_run_gives_one_remedy(attempt: Attempt, call: Call) -> None:
    announce(attempt, "http://10.0.0.7:8001/v1")
    end(attempt, "worker 0 ended\n  log: worker-0.log\n  try: engine.args.x=1")
    for verb in ("endpoint", "chat"):
        done = call(verb)
        refused(done, "has ended: worker 0 ended", "try: engine.args.x=1", code=1)
        assert done.stderr.count("try: ") == 1
    end(attempt, "stopped while serving")
    refused(call("endpoint"), "has ended: stopped while serving", "try: hpc-dynamo serve", code=1)


def test_status_reports_the_age_of_an_old_status(attempt: Attempt, call: Call) -> None:
    write_json(attempt.status_file, Status(phase="serving", at=time.time() - 100))
    assert re.search(r"serving \(last update 10\d s ago\)", printed(call("status")))


def test_status_table_fits_80_columns(attempt: Attempt, tmp_path: Path) -> None:
    report(attempt)
    with on_a_terminal(["status"], tmp_path, columns=80) as status:
        text = rest_of(status)
    assert figures(text)[0][-3:] == ["12/46", "4/9", "117"]


def test_status_of_a_batch_shows_its_progress(attempt: Attempt, call: Call) -> None:
    progress = Progress(total=10, done=4, elapsed_s=2.0)
    write_json(attempt.status_file, Status(phase="running", at=time.time(), progress=progress))
    assert "4/10 done, 0 failed" in printed(call("status"))


def test_live_status_updates_until_the_run_ends(attempt: Attempt, tmp_path: Path) -> None:
    report(attempt)
    with going_on(attempt), on_a_terminal(["status"], tmp_path) as status:
        status.expect_exact("120 requests")
        report(attempt, requests=121)
        status.expect_exact("121 requests")
        end(attempt, "all is well")
        status.expect_exact("ended: all is well")
        assert ends(status) == 0


def test_ctrl_c_in_live_status_does_not_stop_the_run(attempt: Attempt, tmp_path: Path) -> None:
    report(attempt)
    with going_on(attempt), on_a_terminal(["status"], tmp_path) as status:
        status.expect_exact("120 requests")
        status.sendintr()
        assert ends(status) == 0
        assert "running" in hpc_dynamo("status", "--once", cwd=tmp_path).stdout


@pytest.mark.parametrize("words", [["--once"], []])
def test_status_returns_at_once_with_once_or_without_a_job(
    words: list[str], attempt: Attempt, tmp_path: Path
) -> None:
    report(attempt)
    if words:
        with going_on(attempt), on_a_terminal(["status", *words], tmp_path) as status:
            assert ends(status) == 0
    else:
        with on_a_terminal(["status"], tmp_path) as status:
            status.expect_exact("never submitted")
            assert ends(status) == 0


def test_printed_commands_work_when_pasted(attempt: Attempt, tmp_path: Path) -> None:
    key = attempt.run.api_key()
    with simulator(key=key) as rank:
        endpoint = announce(attempt, f"{rank.url}/v1")
        lines = instructions(attempt, endpoint).splitlines()
        line = next(line for line in lines if "curl" in line).replace("scripted", MODEL)
        answer = json.loads(shell(line, tmp_path))
    assert answer["choices"][0]["message"]["content"]
    export = next(line for line in lines if "export" in line)
    exported = shell(f'{export}; echo "$OPENAI_BASE_URL" "$OPENAI_API_KEY"', tmp_path)
    assert exported.split() == [f"{rank.url}/v1", key]
    shown = next(line for line in lines if "key:" in line).split(maxsplit=1)[1]
    assert shell(shown, tmp_path).strip() == key
    chat = next(line for line in lines if "hpc-dynamo chat" in line)
    assert shlex.split(chat)[2] == str(attempt.run.path)
    assert key not in "".join(lines)


def shell(line: str, cwd: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_instructions_with_tls_name_the_certificate(attempt: Attempt) -> None:
    endpoint = announce(attempt, "https://10.0.0.7:8001/v1", cert="/a b/cert.pem")
    text = instructions(attempt, endpoint)
    assert "curl --cacert '/a b/cert.pem' https://10.0.0.7:8001/v1/chat/completions" in text
    assert "use -k instead of --cacert" in text
    assert "base URL is https://localhost:8000/v1" in text


def test_instructions_bypass_a_site_proxy(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = announce(attempt, "http://10.0.0.7:8001/v1")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert "no_proxy" not in instructions(attempt, endpoint)
    assert "--noproxy" not in instructions(attempt, endpoint)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert 'export no_proxy="10.0.0.7,$no_proxy"' in instructions(attempt, endpoint)
    assert "curl --noproxy '*' http://10.0.0.7:8001/v1/" in instructions(attempt, endpoint)


@pytest.mark.parametrize(
    ("url", "host", "submitted_from", "line"),
    [
        ("http://10.0.0.7:8001/v1", "n7", "login.x.org", "-L 8000:10.0.0.7:8001 ann@login.x.org"),
        ("http://[fd00::7]:81/v1", "n7", "login.x.org", "-L 8000:[fd00::7]:81 ann@login.x.org"),
        (
            *("http://127.0.0.1:81/v1", "n7", "login.x.org"),
            "-L 8000:127.0.0.1:81 -J ann@login.x.org ann@n7",
        ),
        ("http://127.0.0.1:81/v1", "", "login.x.org", "-L 8000:127.0.0.1:81 ann@login.x.org"),
        ("http://127.0.0.1:81/v1", "", "localhost", f"-L 8000:127.0.0.1:81 ann@{HERE}"),
    ],
)
def test_ssh_tunnel_from_a_laptop(
    url: str, host: str, submitted_from: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.setenv("SLURM_SUBMIT_HOST", submitted_from)
    endpoint = Endpoint(url=url, host=host or HERE, address="", port=1, model="m", key_file="k")
    assert ssh_tunnel(endpoint) == f"ssh {line}"
