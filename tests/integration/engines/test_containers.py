"""Engines in containers: commands, rejected settings, and runs with a fake container program."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo.config import (
    Config,
    Container,
    ContainerKind,
    Device,
    Engine,
    Model,
    Pool,
    Role,
    Topology,
    validate,
)
from hpc_dynamo.engines import ENGINES, EngineCommand, Placement, diagnose, engine, in_container
from hpc_dynamo.engines.containers.charliecloud import DEFAULT_PATH
from hpc_dynamo.engines.containers.podman import ACCESS, GPUS, HOST, START
from hpc_dynamo.engines.environment import INJECTED
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch import mpi_rank
from hpc_dynamo.launch.mpi_step import WorkerStep
from hpc_dynamo.topology import Shard, Worker
from tests.support import container_programs
from tests.support.runs import SIMULATOR, each_once, hpc_dynamo, latest, write_prompts

APPTAINER = Container(
    kind=ContainerKind.apptainer,
    image="/shared/vllm.sif",
    mounts=("/scratch", "/data/hub:/hub:ro"),
    options=("--writable-tmpfs",),
)
ENROOT = replace(APPTAINER, kind=ContainerKind.enroot, image="/shared/vllm.sqsh", options=("-r",))
PYXIS = replace(ENROOT, kind=ContainerKind.pyxis, options=("--container-writable",))
CHARLIECLOUD = Container(
    kind=ContainerKind.charliecloud,
    image="/shared/vllm.sqfs",
    mounts=("/scratch", "/data/hub:/hub"),
    options=("--write-fake",),
)
PODMAN = replace(APPTAINER, kind=ContainerKind.podman, image="/shared/vllm", options=("--init",))
ALL = (APPTAINER, CHARLIECLOUD, ENROOT, PODMAN, PYXIS)
PLACE = Placement(
    Worker(3, Role.aggregated, (Shard(0, (0, 1)),)),
    "10.0.0.7",
    (5000, 5001),
    ("2", "3"),
    "secret-token",
    events_folder="/tmp/private",
    log_folder="/runs/x/logs",
)


def config(container: Container, name: str = "vllm", **fields: object) -> Config:
    return Config(
        engine=Engine(name=name, container=container, **fields),  # type: ignore[arg-type]  # of Engine
        model=Model(path="/shared/llama"),
        topology=Topology(aggregated=Pool(workers=1)),
    )


def commands(c: Config) -> tuple[EngineCommand, EngineCommand]:
    """Return the engine's command without and with its container.

    Engines in containers do not import from the current folder, which Apptainer mounts.
    """
    bare = engine(c.engine.name).command(c, PLACE)
    whole = in_container(c, PLACE, bare)
    if c.engine.container.kind is ContainerKind.none:
        return bare, whole
    return replace(bare, env={"PYTHONSAFEPATH": "1", **bare.env}), whole


@pytest.mark.parametrize("name", ENGINES)
def test_command_without_container_is_unchanged(name: str) -> None:
    bare, whole = commands(config(Container(), name))
    assert whole is bare
    assert bare.argv[0] == sys.executable


@pytest.mark.parametrize("name", ENGINES)
def test_apptainer_command(name: str) -> None:
    bare, whole = commands(config(APPTAINER, name))
    assert whole.argv == (
        *("apptainer", "exec", "--cleanenv", "--no-eval", "--nv"),
        f"--bind={INJECTED}",
        "--bind=/runs/x/logs",
        "--bind=/tmp/private",
        "--bind=/shared/llama",
        "--bind=/scratch",
        "--bind=/data/hub:/hub:ro",
        *("--writable-tmpfs", "/shared/vllm.sif"),
        *("python3", *bare.argv[1:]),
    )
    assert whole.env == {f"APPTAINERENV_{name}": value for name, value in bare.env.items()}
    assert whole.env["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "2,3"
    assert whole.files == bare.files


@pytest.mark.parametrize("name", ENGINES)
def test_enroot_command(name: str) -> None:
    bare, whole = commands(config(ENROOT, name))
    names = ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", *bare.env)
    assert whole.argv == (
        *("enroot", "start", "--rw", "--rc=/runs/x/logs/enroot-rc.sh"),
        f"--mount={INJECTED}",
        "--mount=/runs/x/logs",
        "--mount=/tmp/private",
        "--mount=/shared/llama",
        "--mount=/scratch",
        "--mount=/data/hub:/hub:none:rbind,x-create=auto,ro",
        *(f"--env={name}" for name in names),
        *("-r", "/shared/vllm.sqsh", "python3", *bare.argv[1:]),
    )
    assert whole.files == {**bare.files, "enroot-rc.sh": 'exec "$@"\n'}
    assert whole.env == {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "ENROOT_LOGIN_SHELL": "no",
        **bare.env,
    }


@pytest.mark.parametrize("name", ENGINES)
def test_pyxis_command(name: str) -> None:
    bare, whole = commands(config(PYXIS, name))
    env = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    names = ",".join(n for n in (*env, *bare.env) if n != "CUDA_VISIBLE_DEVICES")
    ours = (
        mpi_rank.__file__,
        str(INJECTED),
        "/runs/x/logs",
        "/tmp/private",
        "/shared/llama",
        "/scratch",
    )
    assert whole.container_args == (
        f"--export=HOME,{names}",
        "--container-image=/shared/vllm.sqsh",
        f"--container-mounts={','.join(f'{path}:{path}' for path in ours)},/data/hub:/hub:ro",
        f"--container-env={names}",
        "--no-container-mount-home",
        "--no-container-entrypoint",
        "--container-writable",
    )
    assert whole.argv == ("python3", *bare.argv[1:])
    assert whole.env == env | dict(bare.env)
    assert whole.files == bare.files


@pytest.mark.parametrize("name", ENGINES)
def test_charliecloud_command(name: str) -> None:
    bare, whole = commands(config(CHARLIECLOUD, name))
    values = {"HOME": "/tmp/private", **bare.env}
    assert whole.argv == (
        "ch-run",
        *(f"--bind={path}" for path in (INJECTED, "/runs/x/logs", "/tmp/private")),
        *("--bind=/shared/llama", "--bind=/scratch", "--bind=/data/hub:/hub"),
        "--unset-env=!(HPC_DYNAMO_SET_*)",
        f"--set-env=PATH={DEFAULT_PATH}",
        "--write-fake",
        *(f"--set-env={name}=$HPC_DYNAMO_SET_{name}" for name in values),
        *("--unset-env=HPC_DYNAMO_SET_*", "/shared/vllm.sqfs", "--"),
        *("python3", *bare.argv[1:]),
    )
    copies = {f"HPC_DYNAMO_SET_{name}": value for name, value in values.items()}
    assert whole.env == {"TMPDIR": "/tmp", **copies}
    assert whole.files == bare.files


def test_engine_in_charliecloud_has_the_home_of_the_user() -> None:
    _, whole = commands(config(CHARLIECLOUD, env={"HOME": "/scratch/me"}))
    assert whole.env["HPC_DYNAMO_SET_HOME"] == "/scratch/me"


@pytest.mark.parametrize("name", ENGINES)
def test_podman_command(name: str) -> None:
    bare, whole = commands(config(PODMAN, name))
    own, same = "/tmp/private/podman-3-0", (str(INJECTED), "/runs/x/logs", "/tmp/private")
    assert whole.argv == (
        *("sh", "-c", START, "podman", f"--root={own}/root", f"--runroot={own}/run"),
        *("--log-level=error", "--cgroup-manager=cgroupfs"),
        *("run", "--rm", "--replace", "--name=engine", "--log-driver=none"),
        *("--http-proxy=false", *HOST, *ACCESS, GPUS),
        *(f"--volume={path}:{path}" for path in (*same, "/shared/llama", "/scratch")),
        "--volume=/data/hub:/hub:ro",
        *(f"--env={name}" for name in bare.env),
        *("--init", "--rootfs", "/shared/vllm:O", "python3", *bare.argv[1:]),
    )
    assert whole.env == {"XDG_RUNTIME_DIR": own, **bare.env}
    assert whole.files == bare.files


def test_engine_under_pyxis_is_a_step_on_its_node() -> None:
    _, whole = commands(config(PYXIS, python="/env/bin/python"))
    step = WorkerStep(PLACE.worker, 0, whole.container_args)
    c = config(PYXIS, python="/env/bin/python")
    argv = step.srun_argv(c.engine, whole.argv, ["n1"], "--mpi=none")
    inner = ("/env/bin/python", "-I", "-S", mpi_rank.__file__, "0,1", *whole.argv)
    assert argv[-len(inner) - len(whole.container_args) :] == (*whole.container_args, *inner)
    options = set(argv[1 : -len(inner)])
    one = {"--mpi=none", "--overlap", "--nodelist=n1", "--nodes=1", "--ntasks=1"}
    assert one | {"--job-name=worker-3-0", "--cpu-bind=none"} <= options
    assert "--label" not in options


def test_pyxis_without_slurm_is_rejected(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1)
    image = "engine.container.image=/shared/vllm.sqsh"
    words = ("input=prompts.jsonl", *SIMULATOR, "engine.container.kind=pyxis", image)
    refused = hpc_dynamo("batch", *words, cwd=tmp_path)
    assert refused.returncode == 3
    assert "cluster.launcher=local has no srun" in refused.stderr
    assert "engine.container.kind=apptainer" in refused.stderr


@pytest.mark.parametrize("container", ALL, ids=lambda c: c.kind)
def test_cpu_engine_gets_no_gpus_in_container(container: Container) -> None:
    c = config(container, device=Device.cpu, env={"A": "$HOME, as it is"}, python="/env/bin/python")
    _, whole = commands(c)
    assert "--nv" not in whole.argv
    assert GPUS not in whole.argv
    assert whole.env.get("NVIDIA_VISIBLE_DEVICES", "void") == "void"
    assert "/env/bin/python" in whole.argv
    assert "$HOME, as it is" in whole.env.values()


@pytest.mark.parametrize("container", ALL, ids=lambda c: c.kind)
@pytest.mark.parametrize("name", ENGINES)
def test_token_is_not_on_container_command_line(name: str, container: Container) -> None:
    _, whole = commands(config(container, name))
    assert not [word for word in (*whole.container_args, *whole.argv) if "secret-token" in word]


def test_hub_model_is_not_mounted() -> None:
    c = replace(config(APPTAINER), model=Model(path="meta-llama/Llama-3.1-8B"))
    assert "--bind=meta-llama/Llama-3.1-8B" not in commands(c)[1].argv


REFUSED = [
    (replace(APPTAINER, image=""), "engine.container.image is not set", "/shared/vllm.sif"),
    (replace(ENROOT, image=""), "engine.container.image is not set", "/shared/vllm.sqsh"),
    (replace(PYXIS, image=""), "engine.container.image is not set", "/shared/vllm.sqsh"),
    (replace(PYXIS, image="vllm.sqsh"), "look for that in a registry", "/vllm.sqsh"),
    (
        Container(image="/x.sif"),
        "engine.container.image=/x.sif needs a container runtime",
        "kind=apptainer",
    ),
    (
        replace(ENROOT, image="nvcr.io#nvidia/vllm:1"),
        "Enroot starts files",
        "docker://nvcr.io#nvidia/vllm:1",
    ),
    (replace(ENROOT, image="docker://vllm/vllm"), "Enroot starts files", " docker://vllm/vllm"),
    (replace(CHARLIECLOUD, image=""), "engine.container.image is not set", "/shared/vllm.sqfs"),
    (replace(PODMAN, image=""), "engine.container.image is not set", "image=/shared/vllm"),
    (
        replace(CHARLIECLOUD, image="docker://vllm/vllm"),
        "no URLs",
        "ch-image pull vllm/vllm, ch-convert vllm/vllm",
    ),
    (
        replace(CHARLIECLOUD, mounts=("/a:/b:ro",)),
        "Charliecloud mounts nothing read-only",
        "engine.container.mounts=/a:/b",
    ),
    *(
        (replace(PODMAN, image=image), f"image={image} is not the absolute path", "podman export")
        for image in ("/x/vllm.tar", "/x/vllm.sif", "docker.io/vllm/vllm", "images/vllm")
    ),
    *(
        (
            replace(APPTAINER, mounts=(mount,)),
            f"engine.container.mounts: {mount} is not",
            "/scratch",
        )
        for mount in ("scratch", "/a:b", "/a:/b:rx", "/a,/b", "/a:/b:ro:x", "/a b", "")
    ),
]


@pytest.mark.parametrize(("container", "what", "hint"), REFUSED)
def test_invalid_containers_are_rejected(container: Container, what: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"engine\.container") as refused:
        validate(config(container))
    assert what in refused.value.message
    assert hint in refused.value.hint


def test_unquotable_mount_paths_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"model\.path=/a:b cannot be mounted"):
        validate(replace(config(APPTAINER), model=Model(path="/a:b")))
    validate(replace(config(Container()), model=Model(path="/a:b")))


def test_relative_model_path_in_container_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    c = replace(config(APPTAINER), model=Model(path="models/llama"))
    validate(c)  # it could be a hub id
    (tmp_path / "models/llama").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"model\.path=models/llama is relative") as refused:
        validate(c)
    assert refused.value.hint == f"model.path={tmp_path}/models/llama"


def test_valid_containers_are_accepted() -> None:
    fetched = replace(APPTAINER, image="docker://vllm/vllm-openai")
    named = replace(PYXIS, image="nvcr.io#nvidia/vllm:1")
    for container in (*ALL, fetched, named):
        validate(config(container))


@pytest.mark.parametrize(
    ("said", "try_this"),
    [
        ("apptainer cannot be run: No such file or directory", "module load apptainer"),
        ("FATAL:   could not open image /x.sif", "every node sees"),
        ("FATAL: container creation failed: mount source /x doesn't exist", "model.path and"),
        ("[ERROR] No such file or directory: /data/enroot/x", "container.image must"),
        ("[ERROR] Command not found: squashfuse", "enroot create"),
        ('FATAL:   "python3": executable file not found in $PATH', "engine.python"),
        ("srun: unrecognized option '--container-image=/x.sqsh'", "Pyxis in every node's Slurm"),
        ("slurmstepd: error: pyxis: failed to import docker image", "enroot import -o"),
        ("[ERROR] enroot-mount: failed to mount: /x at /y: No such file", "model.path and"),
        ("sh: 1: exec: podman: not found", "install Podman"),
        ("ch-run cannot be run: No such file or directory", "module load charliecloud"),
        ("ch-run[7]: error: can't bind: source not found: /x (ch_core.c:104)", "model.path and"),
        ("ch-run[7]: error: can't mkdir: /x: Read-only file system (30)", "--write-fake"),
        ("ch-run: unrecognized option '--write-fake'", "older than 0.36"),
        ("ch-run[7]: error: can't execve(2): python3: No such file", "engine.python"),
        ('Error: rootfs-overlay: creating overlay failed "/x": chown', "belong to you"),
        ("Error: OCI runtime error: crun: cgroups in hybrid mode not supported", "runc"),
        ("Error: statfs /x: no such file or directory", "model.path and"),
        ("crun: executable file `python3` not found in $PATH: No such file", "engine.python"),
        (
            "Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all",
            "nvidia-ctk",
        ),
        ("CUDA out of memory", "gpu-memory-utilization"),  # the engine's own
    ],
)
def test_advice(said: str, try_this: str) -> None:
    assert try_this in diagnose(config(APPTAINER).engine, said)


def test_unknown_container_kind_lists_known_kinds(tmp_path: Path) -> None:
    done = hpc_dynamo("plan", *SIMULATOR, "engine.container.kind=docker", cwd=tmp_path)
    assert done.returncode == 3
    assert all(kind in done.stderr for kind in ContainerKind), done.stderr


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """Environment in which both programs are the fake; its records are in boxes/."""
    for folder in ("bin", "boxes"):
        (tmp_path / folder).mkdir()
    for name in ("apptainer", "enroot"):
        script = Path(container_programs.__file__).read_text().partition("\n")[2]
        (tmp_path / "bin" / name).write_text(f"#!{sys.executable}\n{script}")
        (tmp_path / "bin" / name).chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {"PATH": path, "BOXES": str(tmp_path / "boxes"), "OF_THE_HOST": "1"}


def batch(folder: Path, env: Mapping[str, str], *words: str) -> tuple[int, str]:
    image = f"engine.container.image={folder / 'image'}"
    inside = (image, f"engine.python={sys.executable}", "engine.max_restarts=0")
    spread = ("topology=disaggregated", "topology.nodes=2")
    argv = ("batch", "input=prompts.jsonl", *SIMULATOR, *inside, *spread, *words)
    done = hpc_dynamo(*argv, cwd=folder, env=env)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["apptainer", "enroot"])
def test_batch_in_containers_leaves_no_processes(
    kind: str, tmp_path: Path, programs: dict[str, str]
) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 20)
    (tmp_path / "image").touch()
    code, said = batch(tmp_path, programs, f"engine.container.kind={kind}")
    assert code == 0, said
    each_once(tmp_path / "runs/prompts", ids)
    told = [json.loads(file.read_text()) for file in (tmp_path / "boxes").iterdir()]
    assert len(told) == 2, "a container for each of the two workers"
    for box in told:
        key = box["inside"]["HPC_DYNAMO_ENGINE_KEY"]
        assert not [word for word in box["argv"] if key in word]
        assert "OF_THE_HOST" not in box["inside"]
        assert not Path(f"/proc/{box['pid']}").exists(), "an engine outlived its run"


def test_missing_container_program_is_reported(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 2)
    bare = {"PATH": str(tmp_path)}
    code, said = batch(tmp_path, bare, "engine.container.kind=apptainer")
    assert code == 1
    assert "apptainer cannot be run: No such file or directory" in said
    assert "module load apptainer" in said
    assert "worker" in said


def test_missing_image_is_reported(tmp_path: Path, programs: dict[str, str]) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 2)
    code, said = batch(tmp_path, programs, "engine.container.kind=apptainer")
    assert code == 1
    assert "could not open image" in said
    assert "a file that every node sees" in said
    logs = latest(tmp_path / "runs/prompts").logs.glob("worker-*.log")  # the first ends the rest
    assert any("could not open image" in log.read_text() for log in logs)
