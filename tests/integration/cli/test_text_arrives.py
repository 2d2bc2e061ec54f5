"""Texts of overrides and files reach the sbatch script and the engine unchanged.

The texts are random. An engine receives them in its environment and on its command line.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.overrides.yaml_text import dump
from hpc_dynamo.config import Config, Role, validate, with_worker_options
from hpc_dynamo.engines import Placement, engine
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch.sbatch_script import quoted, render_script
from hpc_dynamo.topology import plan
from tests.support.runs import hpc_dynamo
from tests.unit.config.test_overrides import ODD

ARGUMENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]))
BASE = ("engine=vllm", "model.path=org/model", "cluster.gpus_per_node=4")
SLOW = settings(
    deadline=None,
    max_examples=4,
    # To shrink an example takes minutes.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)

PRINTER = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv[1:], dict(os.environ)]))
"""


@pytest.fixture(scope="module")
def printer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program that prints its arguments and its environment."""
    program = tmp_path_factory.mktemp("bin") / "python"
    program.write_text(PRINTER)
    program.chmod(0o755)
    return program


def started(config: Config) -> tuple[list[str], dict[str, str]]:
    """Return the command of the engine of the decode worker."""
    worker = next(w for w in plan(config).workers if w.role is Role.decode)
    view = with_worker_options(config, worker.model, worker.role)
    place = Placement(worker, "127.0.0.1", (5000, 5001), ("0",), "key")
    command = engine(view.engine.name).command(view, place)
    done = subprocess.run(
        command.argv, env={**os.environ, **command.env}, capture_output=True, check=True
    )
    argv, environ = json.loads(done.stdout)
    return argv, environ


def options(texts: list[str]) -> list[str]:
    """Return the texts that reach argv as written: no keywords, JSON or mappings."""
    converted = ("true", "false", "null")
    return [t for t in texts if t.lower() not in converted and t[:1] not in ("{", "[")]


@SLOW
@given(texts=st.lists(ARGUMENT, min_size=1))
def test_overrides_reach_argv_and_environment(printer: Path, texts: list[str]) -> None:
    texts = options([*texts, *ODD])
    env = [f"engine.env.TEXT_{at}={text}" for at, text in enumerate(texts)]
    args = [f"engine.decode.args.text-{at}={text}" for at, text in enumerate(texts)]
    argv, environ = started(compose([*BASE, f"engine.python={printer}", *env, *args]))
    assert [environ[f"TEXT_{at}"] for at, _ in enumerate(texts)] == texts
    assert [argv[argv.index(f"--text-{at}") + 1] for at, _ in enumerate(texts)] == texts


@SLOW
@given(texts=st.lists(ARGUMENT, min_size=1))
def test_values_of_a_file_reach_argv_and_environment(
    printer: Path, tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    texts = [*texts, *ODD]
    named = {f"TEXT_{at}": text for at, text in enumerate(texts)}
    folder = tmp_path_factory.mktemp("conf")
    (folder / "engine").mkdir()
    content = {"name": "vllm", "python": str(printer), "env": named, "args": named}
    (folder / "engine" / "mine.yaml").write_text(dump(content), encoding="utf-8")
    argv, environ = started(compose([*BASE[1:], "engine=mine"], folder))
    assert [environ[name] for name in named] == texts
    assert [argv[argv.index(f"--TEXT-{at}") + 1] for at, _ in enumerate(texts)] == texts


@SLOW
@given(texts=st.lists(LINE, min_size=1))
def test_overrides_reach_the_script(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    # These values add an option without a value, or omit it.
    flags = ("", "true", "false", "null")
    texts = [text for text in [*texts, *ODD] if text.isprintable()]
    texts = [text for text in texts if text.strip().lower() not in flags]
    extra = [f"cluster.slurm.extra.text-{at}={text}" for at, text in enumerate(texts)]
    words = [*BASE, *extra, f"engine.env.A={texts[0]}"]
    config = compose(words)
    script = render_script(config, plan(config), "batch", words)
    folder = tmp_path_factory.mktemp("script")
    (folder / "hpc-dynamo").write_text(PRINTER)
    (folder / "hpc-dynamo").chmod(0o755)
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if "--text-" in line]
    lines = [line for line in lines if line.startswith("--text-")]
    printed = subprocess.run(
        ["bash", "-c", "printf '%s\\0' " + " ".join(lines)], capture_output=True, check=True
    )
    found = printed.stdout.decode().split("\0")[:-1]
    assert found == [f"--text-{at}={text}" for at, text in enumerate(texts)]
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(["bash"], input=script.encode(), env=env, capture_output=True, check=True)
    assert json.loads(done.stdout)[0] == ["batch", *words, "cluster.launcher=allocation"]


@pytest.mark.cluster
def test_sbatch_reads_the_written_arguments(tmp_path: Path) -> None:
    """sbatch prints the arguments that it found in a script before it contacts the controller."""
    texts = [text for text in ODD if text.isprintable()]
    lines = "".join(f"#SBATCH --comment={quoted(text)}\n" for text in texts)
    (tmp_path / "script").write_text(f"#!/bin/bash\n{lines}true\n")
    conf = "ClusterName=x\nSlurmctldHost=localhost\nNodeName=localhost\n"
    (tmp_path / "slurm.conf").write_text(conf + "PartitionName=p Nodes=ALL\n")
    env = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf")}
    argv = ["timeout", "5", "sbatch", "-vvv", "--test-only", str(tmp_path / "script")]
    said = subprocess.run(argv, env=env, capture_output=True, text=True, check=False).stderr
    for text in texts:
        assert f'Found in script, argument "--comment={text}"\n' in said


@pytest.mark.parametrize(
    "word",
    ["name=a\nb", "cluster.slurm.account=x\n#SBATCH --x", "cluster.slurm.extra.comment=a\tb"],
)
def test_text_of_several_lines_is_refused_for_fields_of_one_line(word: str) -> None:
    with pytest.raises(ConfigError, match="has a control character"):
        validate(compose([word]))


def test_texts_reach_the_engine_of_a_job(tmp_path: Path) -> None:
    """The texts pass the run folder, the submission, the agent and the supervisor."""
    program, texts = tmp_path / "python", options(ODD)
    program.write_text(PRINTER.replace("print(", "open(os.environ['TO'], 'w').write("))
    program.chmod(0o755)
    words = [
        *("engine=simulator", "cluster=local", "topology=aggregated", "engine.max_restarts=0"),
        *(f"engine.python={program}", f"engine.env.TO={tmp_path / 'said'}", "name=été (1) [x]"),
        *(f"engine.env.TEXT_{at}={text}" for at, text in enumerate(texts)),
        *(f"engine.args.text-{at}={text}" for at, text in enumerate(texts)),
    ]
    done = hpc_dynamo("serve", "--no-preflight", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    argv, environ = msgspec.json.decode((tmp_path / "said").read_bytes())
    assert [environ[f"TEXT_{at}"] for at, _ in enumerate(texts)] == texts
    assert [argv[argv.index(f"--text-{at}") + 1] for at, _ in enumerate(texts)] == texts
    assert (tmp_path / "runs" / "été (1) [x]" / "attempts").is_dir()
    assert "runs/été (1) [x]" in done.stdout + done.stderr
