"""LoRA adapters: overrides, engine options, and the model names in batch requests."""

import json
from pathlib import Path

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.config import Config, Role, validate
from hpc_dynamo.engines import Placement, adapter_fields, engine
from hpc_dynamo.engines import check as check_engines
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import plan
from tests.support.runs import SIMULATOR, hpc_dynamo

BASE = ("model.path=/m", "topology=disaggregated", "cluster.gpus_per_node=4")


def adapter(folder: Path, rank: object, **pattern: int) -> str:
    folder.mkdir()
    told = {"r": rank, "lora_alpha": 16} | ({"rank_pattern": pattern} if pattern else {})
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return str(folder)


def argv(config: Config, role: Role) -> list[str]:
    worker = next(w for w in plan(config).workers if w.role is role)
    place = Placement(worker, "10.0.0.7", (5000, 5001), ("0",), "secret-token")
    return list(engine(config.engine.name).command(config, place).argv)


def test_adapter_names_with_dots_in_overrides_and_files(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("path: /m\nlora: {org/a: /a, sql.v2: /b}\n")
    config = compose(["model=mine", "model.lora.sql.v1.2=/c"], tmp_path)
    assert config.model.lora == {"org/a": "/a", "sql.v2": "/b", "sql.v1.2": "/c"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["model.lora.m=/a"], "the name of the model itself"),
        (["model.lora.a=''"], "model.lora.a has no folder"),
        (["models.x.path=/x", "models.y.path=/y", "models.y.lora.x=/a"], "models.y.lora.x"),
        (
            ["models.x.path=/x", "models.x.lora.a=/a", "models.y.path=/y", "models.y.lora.a=/b"],
            "models.x answers to that name",
        ),
    ],
)
def test_adapter_name_must_be_unique(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        validate(compose([*BASE, *words]))


def test_trtllm_rejects_adapters() -> None:
    config = compose([*BASE, "engine=trtllm", "router.kv_events=false", "model.lora.a=/a"])
    with pytest.raises(ConfigError, match=r"model\.lora\.a: trtllm-serve has no adapters"):
        check_engines(config, plan(config))


@pytest.mark.parametrize("role", [Role.prefill, Role.decode])
def test_vllm_workers_load_all_adapters_with_largest_rank(tmp_path: Path, role: Role) -> None:
    small, large = adapter(tmp_path / "small", 4), adapter(tmp_path / "large", 8, q_proj=24)
    lora = [f"model.lora.small={small}", f"model.lora.large={large}"]
    words = argv(compose([*BASE, "model.name=base", *lora]), role)
    at = words.index("--lora-modules")
    assert [json.loads(word) for word in words[at + 1 : at + 3]] == [
        {"name": "small", "path": small, "base_model_name": "base"},
        {"name": "large", "path": large, "base_model_name": "base"},
    ]
    assert "--enable-lora" in words
    assert words[words.index("--max-lora-rank") + 1] == "32"
    assert words[words.index("--max-loras") + 1] == "2"
    assert "--max-cpu-loras" not in words


def test_many_adapters_limit_those_on_the_device() -> None:
    words = argv(compose([*BASE, *(f"model.lora.a{i}=/x/{i}" for i in range(20))]), Role.decode)
    assert words[words.index("--max-loras") + 1] == "8"
    assert words[words.index("--max-cpu-loras") + 1] == "20"


@pytest.mark.parametrize("rank", [None, "16", 0, 4096])
def test_adapter_without_rank_uses_vllm_default(tmp_path: Path, rank: object) -> None:
    path = adapter(tmp_path / "odd", rank)
    config = compose([*BASE, f"model.lora.odd={path}", "model.lora.far=org/adapter"])
    assert "--max-lora-rank" not in argv(config, Role.decode)


def test_sglang_request_names_model_and_adapter() -> None:
    config = compose([*BASE, "engine=sglang", "model.lora.a=/x/a", "model.lora.b=/x/b"])
    words = argv(config, Role.prefill)
    at = words.index("--lora-paths")
    assert words[at + 1 : at + 3] == ["a=/x/a", "b=/x/b"]
    assert adapter_fields(config, "a") == {"model": "m:a"}
    assert adapter_fields(compose([*BASE, "model.lora.a=/x/a"]), "a") == {}


def test_batch_requests_name_adapter_or_model(tmp_path: Path) -> None:
    asked = {"a": "pirate", "b": "gpt-4", "c": None}
    rows = (
        {"custom_id": i, "prompt": "a fox and a hen", "max_tokens": 4} | ({"model": m} if m else {})
        for i, m in asked.items()
    )
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("input=prompts.jsonl", "model.name=talk", "model.lora.pirate=/adapters/pirate")
    done = hpc_dynamo("batch", *SIMULATOR, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "runs/prompts/output.jsonl").read_text().splitlines()
    bodies = {row["custom_id"]: row["response"]["body"] for row in map(json.loads, lines)}
    assert {i: body["model"] for i, body in bodies.items()} == {
        "a": "pirate",
        "b": "talk",
        "c": "talk",
    }
    texts = {i: body["choices"][0]["text"] for i, body in bodies.items()}
    assert texts["a"] != texts["b"] == texts["c"]
