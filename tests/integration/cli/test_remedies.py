"""Remedies in error messages: pasted into a shell, each one resolves its error."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.terminal import Call, caller

CUDA = ("engine.device=cuda",)

# Overrides that are refused, some of them only in combination.
WRONG = [
    *(["topology.prefill.workers=two"], ["topology.aggregated.workers=x", "topology=aggregated"]),
    *(
        ["cluster.gpus_per_node=many"],
        ["cluster.heartbeat_timeout_s=long"],
        ["cluster.heartbeat_timeout_s=1"],
    ),
    *(
        ["planner.kv_usage_low=half"],
        ["planner.scale_out.max_nodes=few"],
        ["planner.mode=sls"],
        ["serve.port=http"],
    ),
    *(["serve.port=99999"], ["engine.device=tpu"], ["cluster.launcher=cloud"], ["engine=vlm"]),
    *(["cluster.slurm.exclusive=maybe"], ["topology.nodes=all"], ["topology.nodes=0"]),
    *(["topology.decode.worker=2"], ["topolgy.nodes=2"], ["planner=sls"], ["topology=star"]),
    *(
        ["cluster.slurm.time=1h"],
        ["cluster.slurm.time=0"],
        ["batch.max_retries=-1"],
        ["engine.cpus=0"],
    ),
    *(["engine.memory_gb=0"], ["router.temperature=-1"], ["topology.decode.tensor_parallel=0"]),
    *(
        ["topology.aggregated.workers=2"],
        ["topology.decode.tensor_parallel=5", "engine.device=cuda"],
        ["topology.nodes=1", "topology.decode.workers=9", "engine.device=cuda"],
    ),
    *(
        ["planner.scale_out.max_nodes=2"],
        ["planner.interval_s=0", "planner=load"],
        ["planner.hysteresis=-1", "planner=load"],
    ),
    *(["planner=load", "topology=aggregated"], ["planner=load", "engine.sleep_mode=true"]),
    *(
        ["planner.job_handover_lead_s=0", "planner=load"],
        ["planner.min_decode_workers=3", "planner=load"],
    ),
    *(["engine.container.image=/a b.sif"], ["engine.container.kind=apptainer"]),
    ["engine.container.kind=pyxis", "engine.container.image=my vllm.sqsh"],
    [
        *("engine.container.kind=apptainer", "engine.container.image=/a.sif"),
        "engine.container.mounts=scratch",
    ],
    *(["model.lora.a b="], ["topology.decode.hardware=h 100"], ["runs_dir=~nobody-x/a b"]),
    *(["my prompts.jsonl"], ["/shared/my llama"], ["nonsense"], ["~engine.args.x"], ["engine"]),
    *(["~batch.max_retries=3"], ["engine.env.=x"], ["models.a b=x"], ["models.a.pth=/x"]),
    *(
        ["router.block_tokens=24", "router=kv"],
        ["engine.args.block-size=x"],
        ["engine.kv_load_failure_policy=x"],
    ),
    *(["cluster.hardware.x.nodes=0"], ["cluster.hardware.x.nodes=a"], ["cluster.hardware.x=1"]),
    *(["--model", "my llama"], ["--input=my prompts.jsonl"], ["--max-model-len", "8192"]),
    *(["--partition", "gpu"], ["--tensor-parallel-size", "2"], ["--unheard-of"]),
    *(["serve.tls_cert=x"], ["router.policy=best"], ["batch=5"], ["cluster.slurm=gpu"]),
    ["engine=vllm", "engine.decode.args.kv-transfer-config=[1]"],
    *(["cluster.slurm.srun_args.x=1"], ["name.first=x"], ["batch.body_defaults=3"]),
    *(["engine.args.pd-protocol=x"], ["engine.args.start=x"], ["cluster.bootstrap.method=smoke"]),
]
BASE = ("engine=simulator", "cluster.gpus_per_node=4", "model.path=org/model")
PLACEHOLDER = re.compile(r"…|\b[A-Z]{2,}\b")
ONE = r"(?:'[a-z][^'=]*=[^']*'|[+~]?[a-z][\w.-]*=[^\s,;)]+)"
PASTED = re.compile(rf"(?<![\w.'])({ONE}(?: {ONE})*)")


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    return caller(tmp_path, monkeypatch, capsys)


def remedies(hint: str) -> Iterator[str]:
    """Yield the overrides of a hint, as a user would select them with the mouse."""
    for found in PASTED.findall(hint):
        if not PLACEHOLDER.search(found):
            yield found


def pasted(text: str) -> list[str]:
    """Return the arguments that bash passes to a program for this text."""
    command = f"printf '%s\\0' {text}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def without(words: Sequence[str], replaced: Sequence[str]) -> list[str]:
    """Return the overrides whose fields are not replaced."""
    keys = {word.partition("=")[0] for word in replaced}
    return [word for word in words if "=" in word and word.partition("=")[0] not in keys]


@pytest.mark.parametrize("wrong", WRONG, ids=" ".join)
def test_pasted_remedy_resolves_the_error(call: Call, wrong: list[str]) -> None:
    refused = call("plan", *BASE, *wrong)
    message, _, hint = refused.stderr.partition("\n  try: ")
    assert refused.returncode in (2, 3), refused.stdout
    assert hint, message
    assert "++" not in refused.stderr
    for remedy in remedies(hint):
        given = pasted(remedy)
        option = wrong[0].startswith("-") or "=" not in wrong[0]
        rest = [] if option else without(wrong, given)
        after = call("plan", *without(BASE, given), *rest, *given)
        assert message not in after.stderr, remedy
        assert after.returncode == 0 or "hpc-dynamo serve" in after.stderr, (remedy, after.stderr)


def test_none_is_refused_as_an_unset_value(call: Call) -> None:
    done = call("plan", "cluster.gpus_per_node=None")
    assert done.returncode == 3
    assert "cluster.gpus_per_node is not set" in done.stderr
