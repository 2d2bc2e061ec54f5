"""Engines in containers of real runtimes, on Slurm, as an ordinary user."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

import hpc_dynamo
from hpc_dynamo.run import Run
from tests.cluster.install import missing_containers
from tests.cluster.slurm import SlurmCluster
from tests.support.container_image import PYTHON, build_image
from tests.support.requirements import skip_without
from tests.support.runs import HANG_S, answers, latest, until, write_prompts

pytestmark = pytest.mark.cluster

# An ordinary user of every Debian, without subordinate user ids: `games`.
USER = 5
SETPRIV = (f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all")
PACKAGES, CODE = "/opt/packages", "/opt/code"
# Charliecloud 0.31 has no --write-fake, by which later versions create folders to mount on.
KINDS = {
    "charliecloud": ("engine.container.options=[--write]",),
    "podman": (),
}


@dataclass(frozen=True)
class Site:
    """Shared folder of the user: the interpreter, packages and code at readable paths, an image."""

    cluster: SlurmCluster
    folder: Path

    @property
    def mounts(self) -> dict[Path, Path]:
        """Return the folders of this machine that the user cannot always read, by mount point."""
        checkout = Path(hpc_dynamo.__file__).parents[1]
        packages = Path(sysconfig.get_path("purelib"))
        return {
            self.folder / "python": Path(sys.base_prefix),
            self.folder / "packages": packages,
            self.folder / "code": checkout,
        }

    def prepare(self) -> None:
        """Mount the folders on every node, and build the image."""
        for point in self.mounts:
            point.mkdir()
        for node in self.cluster.nodes:
            subprocess.run(self.cluster.on(node, "sh", "-c", self._mounting()), check=True)
        build_image(self.folder / "image", USER)
        os.chown(self.folder, USER, USER)

    def _mounting(self) -> str:
        binds = [f"mount --bind {source} {point}" for point, source in self.mounts.items()]
        # Podman's --ipc=host mounts it; a real node has it.
        queue = "mkdir -p /dev/mqueue && mount -t mqueue mqueue /dev/mqueue"
        return " && ".join([*binds, queue])

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run hpc-dynamo as the user, on the login node."""
        python = f"{self.folder}/python/bin/{PYTHON}"
        path = f"{self.folder}/packages:{self.folder}/code"
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "USER": "games",
            "PYTHONPATH": path,
            # An interpreter outside of the system's folders has its library next to it.
            "LD_LIBRARY_PATH": f"{self.folder}/python/lib",
            "COLUMNS": "200",
            **self.cluster.env,
        }
        command = ("exec", "setpriv", *SETPRIV, python, "-m", "hpc_dynamo", '"$@"')
        script = f"{self._mounting()} && {' '.join(command)}"
        argv = ("unshare", "--mount", "--ipc", "sh", "-c", script, "sh", *words)
        return subprocess.run(
            argv, cwd=self.folder, env=env, capture_output=True, text=True, timeout=HANG_S
        )


@pytest.fixture(scope="module")
def site(cluster: SlurmCluster) -> Iterator[Site]:
    if reason := missing_containers():
        skip_without("containers", reason)
    folder = cluster.shared / "containers"
    folder.mkdir()
    site = Site(cluster, folder)
    site.prepare()
    yield site
    for node in cluster.nodes:
        undo = ("umount", *map(str, site.mounts), "/dev/mqueue")
        subprocess.run(cluster.on(node, *undo), check=True)
    shutil.rmtree(folder)


def container(site: Site, kind: str) -> tuple[str, ...]:
    """Return the overrides for workers in containers, one on each of two nodes."""
    mounts = f"{site.folder}/packages:{PACKAGES},{site.folder}/code:{CODE}"
    return (
        *("engine=simulator", "cluster.launcher=slurm", "topology.nodes=2"),
        *("topology=disaggregated", "cluster.preflight=false", f"name={kind}"),
        *(f"engine.container.kind={kind}", f"engine.container.image={site.folder}/image"),
        f"engine.container.mounts=[{mounts}]",
        f"engine.env.PYTHONPATH={PACKAGES}:{CODE}",
        "engine.env.OF_THE_USER=$HOME 'as it is'",
        *KINDS[kind],
    )


def engines(cluster: SlurmCluster, node: str) -> list[int]:
    words = ("pgrep", "-f", "^python3 -m hpc_dynamo.simulator ")
    found = subprocess.run(cluster.on(node, *words), capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def command_lines(cluster: SlurmCluster, node: str) -> str:
    return _read(cluster, node, "cat /proc/[0-9]*/cmdline 2>/dev/null; true")


def environment(cluster: SlurmCluster, node: str, pid: int) -> dict[str, str]:
    text = _read(cluster, node, f"cat /proc/{pid}/environ")
    return dict(pair.split("=", 1) for pair in text.split("\0") if pair)


def _read(cluster: SlurmCluster, node: str, script: str) -> str:
    done = subprocess.run(cluster.on(node, "sh", "-c", script), capture_output=True, check=True)
    return done.stdout.decode(errors="replace")


def end_of_job(cluster: SlurmCluster, nodes: Sequence[str]) -> None:
    until("the job to leave", lambda: not cluster.slurm("squeue", "-h").strip(), 120)
    assert not any(engines(cluster, node) for node in nodes)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_in_containers(kind: str, site: Site, cluster: SlurmCluster) -> None:
    ids = write_prompts(site.folder / "prompts.jsonl", 20)
    done = site.run("batch", *container(site, kind), f"name={kind}-batch", "input=prompts.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    run = site.folder / f"runs/{kind}-batch"
    assert list(answers(run / "output.jsonl")) == ids
    outcome = latest(run).outcome()
    assert outcome is not None
    assert outcome.summary is not None
    assert outcome.summary.kv_bytes > 0, "NIXL moved nothing between the containers"
    end_of_job(cluster, cluster.nodes)


@pytest.mark.parametrize("kind", KINDS)
def test_endpoint_in_containers(kind: str, site: Site, cluster: SlurmCluster) -> None:
    """Environment and key of the engines, a killed engine, and the orderly end."""
    done = site.run("serve", *container(site, kind), "--detach", "engine.args.timing=instant")
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(site.folder / "runs" / kind)
    until("an endpoint", lambda: latest(run.path).endpoint() or latest(run.path).outcome(), 120)
    attempt = latest(run.path)
    endpoint = attempt.endpoint()
    assert endpoint, attempt.outcome()
    client = openai.OpenAI(base_url=endpoint.url, api_key=run.api_key(), timeout=HANG_S)

    def answer() -> str:
        made = client.completions.create(model="simulated", prompt="Hello " * 40, max_tokens=4)
        return str(made.choices[0].text)

    first = answer()
    second_node = cluster.nodes[1]
    for node in cluster.nodes[:2]:
        (pid,) = engines(cluster, node)
        inside = environment(cluster, node, pid)
        assert inside["OF_THE_USER"] == "$HOME 'as it is'"
        assert not [name for name in inside if name.startswith(("SLURM", "SUBMITIT"))]
        shown = command_lines(cluster, node)
        assert inside["HPC_DYNAMO_ENGINE_KEY"] not in shown
        assert run.secrets().token not in shown
    (pid,) = engines(cluster, second_node)
    subprocess.run(cluster.on(second_node, "kill", "-KILL", str(pid)), check=True)
    until("another engine", lambda: engines(cluster, second_node) not in ([], [pid]))
    assert until("an answer", answer) == first
    done = site.run("stop", f"name={kind}")
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = until("the outcome", attempt.outcome, 120)
    assert outcome.exit_code == 0, outcome
    end_of_job(cluster, cluster.nodes)
