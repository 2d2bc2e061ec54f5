"""Attacks of another user of the same machine. Victim and attacker are two real Unix users."""

import os
import pickle
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from hpc_dynamo.head.workloads.endpoint_socket import port_owner
from hpc_dynamo.messages import WorkerState
from hpc_dynamo.process.listeners import listeners
from hpc_dynamo.process.node_folder import PREFIX
from hpc_dynamo.process.port_guard import PortGuard
from hpc_dynamo.run import Attempt, Run
from tests.support.runs import HANG_S, SIMULATOR, until, write_prompts

VICTIM, ATTACKER = 41001, 41002
# The victim may read all files: Python may be in a folder of root, as on a build machine.
CAPABILITIES = {
    VICTIM: ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"),
    ATTACKER: ("--inh-caps=-all", "--ambient-caps=-all"),
}
Done = subprocess.CompletedProcess[str]


def as_user(uid: int, *argv: str, cwd: Path, umask: str = "022") -> Done:
    """Run a command as a user without groups or a home folder."""
    user = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    shell = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "COLUMNS": "200"}
    return subprocess.run(
        [*user, *CAPABILITIES[uid], *shell, *argv],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def program(*words: str) -> tuple[str, ...]:
    return sys.executable, "-m", "hpc_dynamo", *words


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """Make a folder in which both users may write, as in /tmp."""
    folder = Path(mkdtemp(prefix="hpc-dynamo-users-"))
    folder.chmod(0o1777)
    try:
        start = (sys.executable, "-c", "import hpc_dynamo")
        if os.geteuid() or as_user(VICTIM, *start, cwd=folder).returncode:
            pytest.skip("needs root and setpriv")
        yield folder
    finally:
        shutil.rmtree(folder)


def plant(path: Path, content: str = "", mode: int = 0o777) -> Path:
    """Make a file or folder of the attacker."""
    if content:
        path.write_text(content)
    else:
        path.mkdir()
    os.chown(path, ATTACKER, ATTACKER)
    path.chmod(mode)
    return path


def test_planted_run_folder_is_refused(scratch: Path) -> None:
    """Its keys and pickles are the attacker's."""
    run = plant(plant(scratch / "planted") / "run")
    plant(run / "attempts")
    secrets = '{"token": "known", "public": "p", "private": "p"}'
    plant(run / "secrets.json", secrets, 0o666)
    words = (*SIMULATOR, "name=run", "runs_dir=planted")
    done = as_user(VICTIM, *program("serve", *words), cwd=scratch)
    assert done.returncode == 3
    assert f"{run.parent}: others can write to it" in done.stderr
    run.parent.chmod(0o755)
    for mode in (0o777, 0o755):
        run.chmod(mode)
        done = as_user(VICTIM, *program("serve", *words), cwd=scratch)
        assert done.returncode == 3
        assert f"{run.parent}: it belongs to another user" in done.stderr
        assert f"(owner {ATTACKER}, mode 0755)" in done.stderr
    assert sorted(path.name for path in run.iterdir()) == ["attempts", "secrets.json"]
    plant(run / "attempts/1")
    # `stop` would cancel the jobs that the attacker names; `chat` would send the key of a file that
    # the attacker names to a URL of the attacker.
    for command in (
        ("stop", "planted/run"),
        ("endpoint", "planted/run"),
        ("chat", "planted/run", "x"),
    ):
        done = as_user(VICTIM, *program(*command), cwd=scratch)
        assert done.returncode == 3, command
        assert f"{run.parent}: it belongs to another user" in done.stderr


def test_job_is_not_started_where_others_can_put_files(scratch: Path) -> None:
    """With a `ucx.conf` there, UCX would load modules of the attacker in the victim's engines."""
    plant(scratch / "ucx.conf", "UCX_MODULE_DIR=/nowhere")
    words = ("serve", *SIMULATOR, "name=x", f"runs_dir={scratch}/own")
    done = as_user(VICTIM, *program(*words), cwd=scratch)
    assert done.returncode == 3
    assert f"{scratch}: it is the current folder" in done.stderr


class Payload:
    """Pickle that creates a file when it is loaded."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (self.proof,)


@pytest.mark.parametrize("owner", [ATTACKER, VICTIM], ids=["theirs", "mine"])
def test_task_does_not_load_a_planted_pickle(scratch: Path, owner: int) -> None:
    """The folder was replaced while the job waited, or was writable for a while."""
    folder, proof = scratch / f"submitit-{owner}", scratch / f"proof-{owner}"
    folder.mkdir()
    os.chown(folder, owner, owner)
    pickled = folder / "77_submitted.pkl"
    pickled.write_bytes(pickle.dumps(Payload(proof)))
    os.chown(pickled, ATTACKER, ATTACKER)
    env = ("env", "SUBMITIT_EXECUTOR=slurm", "SLURM_JOB_ID=77", "SLURM_NTASKS=1")
    task = (*env, sys.executable, "-m", "hpc_dynamo.launch.submitit_task", str(folder))
    done = as_user(VICTIM, *task, cwd=scratch)
    assert done.returncode == 1
    assert "it belongs to another user" in done.stderr
    assert f"(owner {ATTACKER}, mode 0" in done.stderr
    assert not proof.exists()
    if owner == VICTIM:  # the same pickle, if it is the user's own, is loaded
        os.chown(pickled, VICTIM, VICTIM)
        as_user(VICTIM, *task, cwd=scratch)
        assert proof.exists()


def test_files_of_a_run_are_private_with_any_umask(scratch: Path) -> None:
    """Keys, prompts, answers and logs; the job's processes inherit the umask of the command."""
    home = scratch / "victim"
    home.mkdir()
    write_prompts(home / "p.jsonl", 4)
    os.chown(home, VICTIM, VICTIM)
    words = ("batch", *SIMULATOR, "input=p.jsonl")
    done = as_user(VICTIM, *program(*words), cwd=home, umask="000")
    assert done.returncode == 0, done.stdout + done.stderr
    made = [home / "runs", *(home / "runs").rglob("*")]
    open_to_others = [path for path in made if stat.S_IMODE(path.lstat().st_mode) & 0o077]
    assert open_to_others == []
    logs = [path.name for path in made if path.parent.name == "logs"]
    assert {"agent-0.log", "worker-0.log"} <= set(logs)
    for attack in (
        ("ls", str(home / "runs")),
        ("cat", str(home / "runs/p/api_key")),
        ("mv", str(home / "runs/p"), str(scratch / "aside")),
        ("touch", str(home / "runs/p/parts/2.jsonl")),
    ):
        refused = as_user(ATTACKER, *attack, cwd=scratch)
        assert refused.returncode, attack
        assert "ermission denied" in refused.stderr


STEAL = """
import socket, sys
for address in ("127.0.0.1", "0.0.0.0", "::"):
    with socket.socket(socket.AF_INET6 if address == "::" else socket.AF_INET) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(sys.argv[2]))
        try:
            thief.bind((address, int(sys.argv[1])))
            thief.listen()
            sys.exit("stolen")
        except OSError:
            pass
sys.exit("in use")
"""


def steals_port(cwd: Path, port: int) -> str:
    """Return what another user gets that binds a port with all options and addresses."""
    tries = {
        as_user(ATTACKER, "/usr/bin/python3", "-c", STEAL, str(port), option, cwd=cwd).stderr
        for option in ("0", "1")
    }
    return "stolen" if "stolen\n" in tries else tries.pop().strip()


def test_port_of_a_dead_engine_cannot_be_taken(scratch: Path) -> None:
    """The key and prompts went there until the head knew of the death."""
    guard = PortGuard()
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as engine:
        port = engine.getsockname()[1]
        assert guard.keep("127.0.0.1", port)
    assert steals_port(scratch, port) == "in use"
    guard.close()
    assert steals_port(scratch, port) == "stolen"
    with socket.create_server(("127.0.0.1", 0)) as engine:
        assert not guard.keep("127.0.0.1", engine.getsockname()[1])


def assert_dead_engine_keeps_its_port(scratch: Path, url: str, agent: int) -> None:
    """The agent is stopped meanwhile: it would restart the engine on another port."""
    port = int(url.rpartition(":")[2])
    engine = int(port_owner(port).split()[1].rstrip(":"))
    os.kill(agent, signal.SIGSTOP)
    try:
        os.kill(engine, signal.SIGKILL)
        until("the end of the engine", lambda: not [*listeners(port)])
        assert steals_port(scratch, port) == "in use"
    finally:
        os.kill(agent, signal.SIGCONT)


def all_ready(attempt: Attempt) -> bool:
    status = attempt.status()
    states = [worker.state for worker in status.workers] if status else []
    return bool(states) and set(states) == {WorkerState.ready}


def test_running_endpoint_shows_and_serves_nothing(scratch: Path) -> None:
    """Command lines, environments, sockets and ports of a run, seen by another user."""
    home = scratch / "serving"
    home.mkdir()
    os.chown(home, VICTIM, VICTIM)
    words = ("serve", *SIMULATOR, "name=s", "topology=aggregated", "--detach")
    done = as_user(VICTIM, *program(*words), cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(home / "runs/s")
    try:
        until("the endpoint", lambda: run.attempts() and run.attempts()[0].endpoint())
        attempt, secrets = run.attempts()[0], run.secrets()
        endpoint = attempt.endpoint()
        assert endpoint
        until("its worker", lambda: all_ready(attempt))
        status = attempt.status()
        assert status
        everything = as_user(ATTACKER, "sh", "-c", "cat /proc/*/cmdline", cwd=scratch).stdout
        assert str(run.path) in everything
        for secret in (run.api_key(), secrets.token, secrets.private):
            assert secret not in everything
        for node in attempt.nodes():
            for name in ("environ", "maps", "fd"):
                look = ("ls" if name == "fd" else "cat", f"/proc/{node.pid}/{name}")
                assert as_user(ATTACKER, *look, cwd=scratch).returncode, look
        for folder in Path("/tmp").glob(f"{PREFIX}*"):
            if folder.stat().st_uid == VICTIM:
                assert as_user(ATTACKER, "ls", str(folder), cwd=scratch).returncode
        urls = [f"{endpoint.url}/models", *(f"{w.url}/v1/models" for w in status.workers)]
        for url in urls:
            ask = ("curl", "-s", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", url)
            assert as_user(ATTACKER, *ask, cwd=scratch).stdout == "401", url
        (node,) = attempt.nodes()
        assert_dead_engine_keeps_its_port(scratch, status.workers[0].url, node.pid)
    finally:
        as_user(VICTIM, *program("stop", "name=s"), cwd=home)
    until("the end", lambda: run.attempts()[0].outcome())


def test_run_folder_replaced_by_a_link_is_refused(scratch: Path) -> None:
    """A link to another folder of the victim would make the run write there."""
    home = scratch / "linked"
    home.mkdir()
    os.chown(home, VICTIM, VICTIM)
    (home / "runs").symlink_to("/tmp")
    os.lchown(home / "runs", ATTACKER, ATTACKER)
    done = as_user(VICTIM, *program("serve", *SIMULATOR, "name=x"), cwd=home)
    assert done.returncode == 3
    assert "symbolic link of another user" in done.stderr
    assert not Path("/tmp/x").exists()
