"""Suggestions of the command line for unknown options and names."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpc_dynamo.engines.option_names import flags, multi_value, values
from tests.support.terminal import Call, printed, refused

AGGREGATED = "topology=aggregated"


@pytest.mark.parametrize(
    ("verb", "words", "suggested"),
    [
        ("batch", ["--max-tokens", "5"], "batch.body_defaults.max_tokens=5"),
        ("batch", ["--temperature=0.5"], "batch.body_defaults.temperature=0.5"),
        ("serve", ["--port", "80"], "serve.port=80"),
        ("batch", ["--retries", "2"], "batch.max_retries=2"),
        ("serve", ["--max-model-len", "8192"], "engine.args.max-model-len=8192"),
        ("serve", ["--max_model_len", "8192"], "engine.args.max-model-len=8192"),
        ("serve", ["--max-model-len"], "engine.args.max-model-len=VALUE"),
        ("serve", ["--enforce-eager"], "engine.args.enforce-eager=true"),
        ("serve", ["--no-enable-prefix-caching"], "engine.args.enable-prefix-caching=false"),
        ("serve", ["--mem-fraction-static", "0.8"], "engine.args.mem-fraction-static=0.8"),
        ("serve", ["--api-key", "x"], "serve.api_key_file=FILE, a file that holds the key"),
        *(
            (
                "serve",
                [option, "4"],
                f"topology.prefill.{field}=4 topology.decode.{field}=4",
            )
            for option, field in [
                ("--tensor-parallel-size", "tensor_parallel"),
                ("-tp", "tensor_parallel"),
                ("--pipeline-parallel-size", "pipeline_parallel"),
                ("--dp-size", "data_parallel"),
                ("--workers", "workers"),
            ]
        ),
        ("serve", ["--tp", "4", AGGREGATED], "topology.aggregated.tensor_parallel=4"),
        (
            "serve",
            ["--tp", "4", "topology.kind=aggregated"],
            "topology.aggregated.tensor_parallel=4",
        ),
        ("serve", ["--tp", "4", "recipe=llama-8b-vllm"], "topology.aggregated.tensor_parallel=4"),
        ("status", ["--name", "x"], "name=x"),
    ],
)
def test_unknown_option_suggests_its_override(
    call: Call, verb: str, words: Sequence[str], suggested: str
) -> None:
    done = call(verb, *words)
    assert done.returncode == 2
    assert f"unknown options: {words[0].partition('=')[0]}" in done.stderr
    assert done.stderr.endswith(f"\n  try: {suggested}\n")


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["status", "--json"], "--once"),
        (["stop", "--force"], "--config-dir"),
        (["logs", "--max-model-len", "5"], "-n/--lines"),
        (["batch", "-o", "out.jsonl"], "--detach"),
        (["batch", "--host", "0.0.0.0"], "--detach"),
        (["route", "--bogus"], "--workers"),
        (["serve", "--max-tokens", "5"], "--no-preflight"),
    ],
)
def test_unknown_option_without_override_lists_the_options_of_the_verb(
    call: Call, words: Sequence[str], own: str
) -> None:
    done = call(*words)
    assert done.returncode == 2
    assert f"unknown options: {words[1]}; options of {words[0]}: " in done.stderr
    assert own in done.stderr
    assert "engine.args" not in done.stderr
    assert done.stderr.endswith(f"\n  try: hpc-dynamo {words[0]} --help\n")


def test_unknown_options_are_reported_together_with_known_overrides(call: Call) -> None:
    said = call("serve", "--bogus", "--port", "80").stderr
    assert "unknown options: --bogus; options of serve: " in said
    assert "\n  the others are overrides here: serve.port=80\n" in said


def test_sweep_suggests_a_shell_loop_that_works(call: Call, tmp_path: Path) -> None:
    words = ("--show", "engine=simulator", "name=a b", "topology.prefill.workers=1,2")
    done = call("plan", "-m", *words)
    assert done.returncode == 2
    assert "unknown option -m: sweeps are not supported" in done.stderr
    loop = done.stderr.partition("\n  try: ")[2]
    define = f'hpc-dynamo() {{ {sys.executable} -m hpc_dynamo "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-c", define + loop], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    shown = re.sub(r"^ *#.*\n", "", done.stdout, flags=re.MULTILINE)
    assert shown.count("name: a b\n") == 2
    assert "  prefill:\n    workers: 1\n" in shown
    assert "  prefill:\n    workers: 2\n" in shown
    loop = call("batch", "--multirun", "input=a.jsonl").stderr.partition("\n  try: ")[2]
    assert 'input=a.jsonl name="run-$value" engine.max_num_seqs="$value"; done' in loop


@pytest.mark.parametrize(
    ("word", "suggested"),
    [
        ("model=meta-llama/Llama-3.1-8B", "model.path=meta-llama/Llama-3.1-8B"),
        ("model=/shared/my llama", "'model.path=/shared/my llama'"),
        ("model=llama", "model.path=llama"),
        ("partition=gpu", "cluster.slurm.partition=gpu"),
        ("time=1:00:00", "cluster.slurm.time=1:00:00"),
        ("port=8000", "serve.port=8000"),
        ("gpus=4", "cluster.gpus_per_node=4"),
        ("tp=2", "topology.prefill.tensor_parallel=2 topology.decode.tensor_parallel=2"),
        ("max-model-len=5", "engine.args.max-model-len=5"),
    ],
)
def test_unknown_field_suggests_its_override(call: Call, word: str, suggested: str) -> None:
    refused(call("plan", word), f"\n  try: {suggested}")


def test_unknown_field_without_suggestion_lists_the_fields(call: Call) -> None:
    refused(call("plan", "bogus=4"), "bogus is not a field", "known: batch, ")


def test_plan_warns_about_overrides_of_unused_pools(call: Call) -> None:
    words = ("plan", "engine=simulator")
    said = printed(
        call(*words, AGGREGATED, "topology.prefill.data_parallel=2", "engine.decode.args.x=1")
    )
    for key in ("topology.prefill.data_parallel", "engine.decode.args.x"):
        warned = f"{key} has no effect: {AGGREGATED} runs aggregated workers"
        assert f"warning: {warned}" in said
    said = printed(call(*words, "topology.aggregated.tensor_parallel=2"))
    assert "topology=disaggregated runs prefill and decode workers" in said
    several = (
        "models.a.path=/m models.a.topology=aggregated models.a.topology.decode.data_parallel=3"
    )
    said = printed(call(*words, *several.split()))
    assert "models.a.topology.decode.data_parallel has no effect" in said
    assert "no effect" not in printed(call(*words, "topology.prefill.workers=2"))


def test_suggested_names_of_engine_options_are_long_ones() -> None:
    assert "max-model-len" in values()
    assert "cuda-graph-bs-decode" in multi_value() <= values()
    assert {"enforce-eager", "no-enable-prefix-caching"} <= flags()
    assert not {"tp", "q", "h", "help"} & (values() | flags())
    assert not values() & flags()
