"""Options that one role's workers get on top of all roles'."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Config, Role, with_role_options, with_worker_options
from hpc_dynamo.engines import check
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import plan
from tests.support.runs import SIMULATOR, answers, hpc_dynamo, latest, write_prompts
from tests.support.terminal import Call, printed, refused

BASE = ("model.path=/shared/llama", "cluster.gpus_per_node=8")


def config(*words: str) -> Config:
    return compose([*BASE, *words])


def args(role: Role, *words: str) -> dict[str, Any]:
    return with_role_options(config(*words), role).engine.args


def test_role_options_override_common_options() -> None:
    own = ("engine.decode.args.b=2", "engine.decode.args.c=3")
    words = ("engine.args.a=1", "engine.args.b=1", *own)
    assert args(Role.prefill, *words) == {"a": 1, "b": 1}
    assert args(Role.decode, *words) == {"a": 1, "b": 2, "c": 3}


def test_role_mappings_are_merged_by_key() -> None:
    both = "engine.args.kv-transfer-config={kv_port: 1, extra: {x: 1, y: 1}}"
    own = "engine.decode.args.kv-transfer-config={extra: {y: 2}}"
    merged = {"kv_port": 1, "extra": {"x": 1, "y": 2}}
    assert args(Role.decode, both, own) == {"kv-transfer-config": merged}


def test_role_json_objects_are_merged_by_key() -> None:
    both = 'engine.args.x={"a":1.0,"extra":{"x":1}}'
    own = 'engine.decode.args.x={"extra":{"y":2}}'
    assert args(Role.decode, both, own) == {"x": {"a": 1.0, "extra": {"x": 1, "y": 2}}}
    assert args(Role.prefill, both, own) == {"x": '{"a":1.0,"extra":{"x":1}}'}


WIDE = ("engine=trtllm", "cluster.gpus_per_node=6", "topology.decode.data_parallel=32")


def test_error_of_common_options_does_not_name_role() -> None:
    made = config(*WIDE, "engine.prefill.args.max_num_tokens=512")
    with pytest.raises(ConfigError, match=r"topology\.decode: 32 GPUs per worker") as wrong:
        check(made, plan(made))
    assert "(with engine." not in wrong.value.message


@pytest.mark.parametrize("spelled", ["kv-transfer-config", "kv_transfer_config"])
def test_dashes_and_underscores_name_same_option(spelled: str) -> None:
    both = "engine.args.kv_transfer_config={kv_port: 1}"
    own = f"engine.decode.args.{spelled}={{kv_rank: 2}}"
    merged = {"kv_port": 1, "kv_rank": 2}
    assert args(Role.decode, both, own) == {"kv_transfer_config": merged}


def test_role_environment_is_merged() -> None:
    words = ("engine.env.A=1", "engine.env.B=1", "engine.aggregated.env.B=2")
    assert with_role_options(config(*words), Role.aggregated).engine.env == {"A": "1", "B": "2"}
    assert with_role_options(config(*words), Role.decode).engine.env == {"A": "1", "B": "1"}


def test_configuration_for_worker_is_idempotent() -> None:
    made = config("engine.args.a={b: 1}", "engine.decode.args.a={c: 2}")
    view = with_worker_options(made, "", Role.decode)
    assert view == with_role_options(made, Role.decode) == with_role_options(view, Role.decode)
    assert replace(view, engine=made.engine) == made


def test_unknown_role_is_rejected_with_suggestion() -> None:
    assert args(Role.prefill, "engine.prefill.args={a: 1}") == {"a": 1}
    with pytest.raises(ConfigError) as wrong:
        config("engine.prefil.args.a=1")
    assert "did you mean prefill?" in wrong.value.hint


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["engine.decode.args.block-size=24"], "router.block_tokens=16 does not divide"),
        (["engine=trtllm", "engine.decode.args.config=x.yaml"], "args.config would replace"),
        (["engine=sglang", "engine.prefill.args.tokenizer-worker-num=2"], "checks no key"),
    ],
)
def test_options_of_each_role_are_checked(words: list[str], what: str) -> None:
    made = config(*words)
    with pytest.raises(ConfigError) as wrong:
        check(made, plan(made))
    assert what in wrong.value.message
    assert re.search(r"\(with engine\.(prefill|decode)\)$", wrong.value.message)
    others = [word.replace(".decode.", ".aggregated.") for word in words]
    unused = config(*(word.replace(".prefill.", ".aggregated.") for word in others))
    check(unused, plan(unused))  # a role that this topology does not have


DIFFER = ("planner=load", "engine.prefill.args.max-num-batched-tokens=16384")


def test_role_options_with_live_role_change_are_rejected() -> None:
    made = config(*DIFFER)
    with pytest.raises(ConfigError) as wrong:
        check(made, plan(made))
    assert "engine.prefill" in wrong.value.message
    assert "planner.restart_on_role_change=true" in wrong.value.hint


@pytest.mark.parametrize(
    "words",
    [
        [*DIFFER, "planner.restart_on_role_change=true"],
        # Restarts in any case.
        ["planner=load", "engine=sglang", "engine.prefill.args.chunked-prefill-size=16384"],
        [*DIFFER, "engine.decode.args.max_num_batched_tokens=16384"],  # the same after all
    ],
)
def test_role_options_with_restart_on_role_change_are_accepted(words: list[str]) -> None:
    made = config(*words)
    check(made, plan(made))


def test_serve_rejects_role_options_before_creating_run_folder(call: Call, tmp_path: Path) -> None:
    done = call("serve", "engine=simulator", *DIFFER)
    refused(done, "engine.prefill and engine.decode differ", "planner.restart_on_role_change=true")
    assert list(tmp_path.iterdir()) == []


def test_engines_of_a_run_get_role_options(tmp_path: Path) -> None:
    ids = write_prompts(tmp_path / "prompts.jsonl", 4)
    own = ("engine.prefill.args.max-num-batched-tokens=512", "engine.decode.args.num-blocks=999")
    words = (*SIMULATOR, *own, "engine.args.num-blocks=888", "input=prompts.jsonl")
    printed(hpc_dynamo("batch", *words, cwd=tmp_path))
    run = tmp_path / "runs" / "prompts"
    assert list(answers(run / "output.jsonl")) == ids
    log = next(latest(run).logs.glob("agent-0*")).read_text()
    started = dict(re.findall(r"worker \d \((\w+)\).*? starts: (.*)", log))
    assert "--max-num-batched-tokens 512" in started["prefill"]
    assert "--num-blocks 888" in started["prefill"]
    assert "--max-num-batched-tokens" not in started["decode"]
    assert "--num-blocks 999" in started["decode"]
