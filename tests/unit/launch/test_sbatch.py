"""The scripts in sbatch/ are what the renderer writes, and ask for what is submitted."""

import difflib
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Config, Task
from hpc_dynamo.errors import LaunchError
from hpc_dynamo.launch import slurm
from hpc_dynamo.launch.sbatch_script import render_script, submission_script
from hpc_dynamo.launch.srun import srun_command
from hpc_dynamo.run import Attempt, Run
from hpc_dynamo.tasks import node
from hpc_dynamo.topology import plan
from tests.support.runs import HANG_S

FOLDER = Path(__file__).parents[3] / "sbatch"
HOW = "HPC_DYNAMO_ACCEPT=1 pytest tests/unit/launch/test_sbatch.py"

# Model and input come after the script's name on sbatch's line:
#     sbatch sbatch/batch-vllm-1node.sbatch model.path=/shared/llama input=prompts.jsonl
#     sbatch sbatch/serve.sbatch model.path=/shared/llama
CASES: dict[str, tuple[str, list[str]]] = {
    "batch-simulator": (
        "batch",
        [
            "engine=simulator",
            "topology.nodes=3",
            "topology.prefill.workers=2",
            "topology.decode.workers=1",
        ],
    ),
    "batch-vllm-1node": (
        "batch",
        [
            "cluster.gpus_per_node=4",
            "topology.prefill.workers=2",
            "topology.decode.workers=2",
        ],
    ),
    "batch-vllm-2node": (
        "batch",
        [
            "cluster.gpus_per_node=4",
            "topology.prefill.tensor_parallel=4",
            "topology.decode.tensor_parallel=4",
        ],
    ),
    "batch-aggregated": (
        "batch",
        [
            "cluster.gpus_per_node=4",
            "topology=aggregated",
            "topology.aggregated.workers=4",
        ],
    ),
    "serve": (
        "serve",
        [
            "cluster.gpus_per_node=4",
            "topology.prefill.workers=2",
            "topology.decode.workers=2",
        ],
    ),
    "serve-aggregated": (
        "serve",
        [
            "cluster.gpus_per_node=4",
            "topology=aggregated",
            "topology.aggregated.workers=4",
        ],
    ),
    "serve-2node": (
        "serve",
        [
            "cluster.gpus_per_node=4",
            "topology.prefill.tensor_parallel=4",
            "topology.decode.tensor_parallel=4",
        ],
    ),
    "batch-apptainer": (
        "batch",
        [
            "cluster.gpus_per_node=4",
            "cluster.slurm.setup=['module load apptainer']",
            "engine.container.kind=apptainer",
            "engine.container.image=/shared/images/vllm-openai.sif",
            "topology.prefill.workers=2",
            "topology.decode.workers=2",
        ],
    ),
    "serve-enroot": (
        "serve",
        [
            "cluster.gpus_per_node=8",
            "engine=sglang",
            "engine.container.kind=enroot",
            "engine.container.image=/shared/images/sglang.sqsh",
            "engine.container.mounts=['/scratch','/data/hub:/hub:ro']",
            "topology.prefill.tensor_parallel=8",
            "topology.decode.tensor_parallel=8",
        ],
    ),
    "serve-pyxis": (
        "serve",
        [
            "cluster.gpus_per_node=8",
            "engine=trtllm",
            "engine.container.kind=pyxis",
            "engine.container.image='nvcr.io#nvidia/tensorrt-llm/release:1.2.0'",
            "engine.container.mounts=['/scratch','/data/hub:/hub:ro']",
            "topology=aggregated",
            "topology.aggregated.tensor_parallel=16",
        ],
    ),
    "serve-conda": (
        "serve",
        [
            "cluster.gpus_per_node=4",
            "cluster.slurm.setup=['module load cuda','source /shared/conda/bin/activate vllm']",
            "engine.python=python",
            "topology=aggregated",
            "topology.aggregated.workers=4",
        ],
    ),
    **{
        f"serve-llama-70b-2p2d-{engine}": (
            "serve",
            [f"recipe=llama-70b-2p2d-{engine}", "cluster.gpus_per_node=8"],
        )
        for engine in ("vllm", "sglang", "trtllm")
    },
    "serve-simulator": (
        "serve",
        [
            "engine=simulator",
            "topology.nodes=3",
            "topology.prefill.workers=2",
            "topology.decode.workers=1",
        ],
    ),
}

# submitit has no words for heterogeneous jobs: see test_mixed.py for what is submitted.
MIXED: dict[str, tuple[str, list[str]]] = {
    "serve-mixed": (
        "serve",
        [
            "cluster.hardware.h100.partition=h100",
            "cluster.hardware.h100.gpus_per_node=4",
            "cluster.hardware.l40s.partition=l40s",
            "cluster.hardware.l40s.gpus_per_node=8",
            "topology.prefill.hardware=h100",
            "topology.prefill.tensor_parallel=4",
            "topology.decode.hardware=l40s",
            "topology.decode.workers=2",
            "topology.decode.tensor_parallel=8",
        ],
    ),
}
ALL = CASES | MIXED


def rendered(name: str) -> str:
    verb, overrides = ALL[name]
    config = replace(compose(overrides), task=Task(verb))
    return render_script(config, plan(config), verb, overrides)


@pytest.mark.parametrize("name", ALL)
def test_rendered_scripts_equal_golden_files(name: str) -> None:
    file, now = FOLDER / f"{name}.sbatch", rendered(name)
    if os.environ.get("HPC_DYNAMO_ACCEPT"):
        file.write_text(now)
    before = file.read_text() if file.exists() else ""
    old, new = (text.splitlines(keepends=True) for text in (before, now))
    diff = "".join(difflib.unified_diff(old, new, file.name, "what the renderer writes now"))
    assert not diff, f"{diff}\nto accept this change:  {HOW}"


def test_every_golden_script_has_a_case() -> None:
    assert {f.stem for f in FOLDER.glob("*.sbatch")} == set(ALL)


ODD = ['input=it\'s my "file" $HOME.jsonl', "model.path=/a b", "name=x;y"]


@pytest.mark.parametrize("name", ALL)
def test_golden_scripts_are_valid_shell(name: str) -> None:
    bash = ["bash", "-n", str(FOLDER / f"{name}.sbatch")]
    checked = subprocess.run(bash, capture_output=True, text=True, timeout=HANG_S)
    assert (checked.returncode, checked.stderr) == (0, "")


EARLY_SIGNAL = "import os; os.kill(os.getpid(), 12); print('alive')"  # 12 is SIGUSR2


def called(text: str, folder: Path, *arguments: str) -> list[str]:
    """Run a script with these arguments and a fake `hpc-dynamo`; return its command line."""
    program = folder / "hpc-dynamo"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (folder / "script").write_text(text)
    path = f"{folder}:{os.environ['PATH']}"
    argv = ["bash", str(folder / "script"), *arguments]
    done = subprocess.run(
        argv, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ALL)
def test_script_passes_arguments_of_sbatch_to_its_verb(name: str, tmp_path: Path) -> None:
    verb, overrides = ALL[name]
    words = called(rendered(name), tmp_path, *ODD)
    assert words == [verb, *overrides, "cluster.launcher=allocation", *ODD]


def test_script_ignores_signal_until_its_program_handles_it(tmp_path: Path) -> None:
    early = "cluster.slurm.setup=['kill -USR2 $$']"
    config = compose(["engine=simulator", early])
    assert called(render_script(config, plan(config), "batch", []), tmp_path)[0] == "batch"


def test_task_ignores_signal_until_it_handles_it() -> None:
    config = compose(["engine=simulator"])
    command = srun_command([(config, plan(config))], (sys.executable, "-c", EARLY_SIGNAL))
    task = command[command.index("/bin/sh") :]
    done = subprocess.run(task, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_overrides_are_quoted_and_setup_runs_first(tmp_path: Path) -> None:
    setup = "cluster.slurm.setup=['echo from the setup']"
    overrides = ["engine=simulator", setup, *ODD[:1]]
    config = compose(["engine=simulator", setup])
    words = called(render_script(config, plan(config), "batch", overrides), tmp_path)
    assert words == ["from the setup", "batch", *overrides, "cluster.launcher=allocation"]


def directives(text: str) -> dict[str, str]:
    """Return the #SBATCH lines by option; a repeated option must have the same value."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#SBATCH --"):
            option, _, value = line.removeprefix("#SBATCH --").partition("=")
            (word,) = shlex.split(value) or [""]
            assert found.setdefault(option, word) == word, f"--{option} is there twice"
    return found


@pytest.fixture
def slurm_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that takes every job as number 42, and an srun that has PMIx."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text("#!/bin/sh\necho Submitted batch job 42\n")
    (folder / "srun").write_text("#!/bin/sh\necho 'MPI plugin types are none pmix' >&2\n")
    for program in folder.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def attempt_of(config: Config, run: Run) -> Attempt:
    return run.new_attempt(config, plan(config))


def submitted(config: Config, run: Run) -> str:
    """The script that submitit hands to sbatch."""
    attempt = attempt_of(config, run)
    assert slurm.submit(attempt, config, plan(config), node.main).job_id == "42"
    (script,) = attempt.submitit.glob("42_submission.sh")
    text = script.read_text()
    assert text == submission_script(attempt, config, plan(config))
    return text


OURS_TO_CHOOSE = {"output", "error", "signal"}
SITES: list[list[str]] = [
    [],
    ["cluster.slurm.partition=gpu", "cluster.slurm.account=g42", "cluster.slurm.time=2-00:00:00"],
    ["cluster.slurm.exclusive=true", "cluster.slurm.constraint=a100&ib"],
    ["cluster.slurm.qos=high", "cluster.slurm.reservation=me", "cluster.slurm.extra.mail-type=END"],
    ["cluster.slurm.gpu_option=gres", "cluster.slurm.gpu_type=h100", "cluster.cpus_per_node=64"],
    ["cluster.slurm.extra.no-requeue=true", "cluster.slurm.extra.mem-per-cpu=1G"],
    ["cluster.slurm.gpu_option=none", "cluster.memory_gb_per_node=0"],
    ["cluster.slurm.extra.export=NONE", "cluster.slurm.extra.wckey=mine"],
]


@pytest.mark.usefixtures("slurm_programs")
@pytest.mark.parametrize("site", SITES, ids=lambda words: ",".join(words) or "plain")
@pytest.mark.parametrize("name", CASES)
def test_script_requests_equal_submitted_requests(name: str, site: list[str], run: Run) -> None:
    verb, overrides = CASES[name][0], [*CASES[name][1], *site]
    config = replace(compose(overrides), task=Task(verb), name="my-run")
    own = directives(render_script(config, plan(config), verb, overrides))
    submitits = directives(submitted(config, run))
    for option in OURS_TO_CHOOSE:
        own.pop(option, None)
        submitits.pop(option, None)
    assert own == submitits


@pytest.mark.usefixtures("slurm_programs")
def test_step_of_submitit_has_srun_options(run: Run) -> None:
    config = compose([*CASES["batch-simulator"][1], "cluster.slurm.setup=[module load cuda]"])
    text = submitted(config, run)
    (srun,) = (line for line in text.splitlines() if line.startswith("srun "))
    words = shlex.split(srun)
    wanted = {"--mpi=none", "--kill-on-bad-exit=0", "--no-kill", "--cpus-per-task=3"}
    assert wanted | {"--export=ALL"} <= set(words)
    assert text.index("module load cuda") < text.index(srun)


def test_sbatch_error_is_reported_once(
    slurm_programs: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    said = "sbatch: error: invalid partition specified: gpus"
    (slurm_programs / "sbatch").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    config = compose(CASES["batch-simulator"][1])
    with pytest.raises(LaunchError, match="invalid partition specified: gpus") as refused:
        slurm.submit(attempt_of(config, run), config, plan(config), node.main)
    assert "cluster.slurm.partition" in refused.value.hint
    assert "invalid partition" not in capfd.readouterr().err, "submitit has shown it, too"


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        ("MPI plugin types are...\n\tpmix\n\tnone", "pmix"),
        ("srun: MPI types are...\nsrun: pmix_v4", "none"),
        ("MPI plugin types are...\n\tpmi2\n\tcray_shasta", "none"),
        ("", "none"),
    ],
)
def test_mpi_option_of_srun(slurm_programs: Path, listed: str, chosen: str) -> None:
    (slurm_programs / "srun").write_text(f"#!/bin/sh\necho '{listed}'\n")
    assert slurm.rank_mpi(compose([]).cluster) == chosen
    assert slurm.rank_mpi(compose(["cluster.slurm.mpi=pmi2"]).cluster) == "pmi2"
