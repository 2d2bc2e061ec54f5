"""Verbs refuse models that no engine can load before they submit anything."""

import json
from pathlib import Path

import pytest

from hpc_dynamo.doctor.records import DoctorReport
from hpc_dynamo.run import read_json
from tests.support.hub import adapter_folder, cached, model_folder
from tests.support.runs import hpc_dynamo, write_prompts
from tests.support.terminal import Call, caller, printed, refused

LOCAL = ("cluster.launcher=local", "cluster.gpus_per_node=2")
PLAN = ("plan", "cluster.gpus_per_node=2")


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return caller(tmp_path, monkeypatch, capsys)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm", "simulator"])
@pytest.mark.parametrize("verb", ["plan", "batch", "serve", "profile"])
def test_every_verb_refuses_an_empty_model_folder(
    verb: str, engine: str, call: Call, empty: Path, tmp_path: Path
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", 1)
    words = (*LOCAL, f"engine={engine}", f"model.path={empty}")
    more = {"batch": ["input=prompts.jsonl"], "profile": ["topology=aggregated"]}
    done = call(verb, *words, *more.get(verb, []))
    refused(done, f"model.path={empty} cannot be loaded: the folder is empty", "hf download")
    assert not (tmp_path / "runs").exists()


def test_plan_refuses_script_and_commands_of_an_empty_folder(call: Call, empty: Path) -> None:
    for how in ("--sbatch", "--commands", "--dry-run --verb serve"):
        refused(call(*PLAN, *how.split(), f"model.path={empty}"), "the folder is empty")
    assert printed(call(*PLAN, f"model.path={empty}", "cluster.preflight=false"))


def test_complete_model_gives_no_warning(call: Call, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    shown = printed(call(*PLAN, f"model.path={folder}"))
    assert "try:" not in shown
    cached(tmp_path / "hf" / "hub", folder)
    assert printed(call(*PLAN, "model.path=demo/tiny")) == shown


def test_hub_id_that_is_not_cached_gives_a_warning(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = printed(call(*PLAN, "model.path=org/name"))
    assert "warning: model.path=org/name is neither a folder here nor in" in shown
    assert "try: hf download org/name, or model.path=FOLDER" in shown
    offline = "engine.env.HF_HUB_OFFLINE=1"
    refused(call(*PLAN, "model.path=org/name", offline), "HF_HUB_OFFLINE forbids downloads")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(call(*PLAN, "model.path=org/name"), "hf download org/name")


def test_path_missing_on_the_login_node_is_accepted(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "on-the-nodes"
    shown = printed(call(*PLAN, f"model.path={path}"))
    assert f"note: model.path={path} is not on this machine" in shown
    refused(call("serve", *LOCAL, f"model.path={path}"), f"model.path={path} is not there")


def test_model_without_a_fast_tokenizer_gives_a_warning(call: Call, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    off = "warning: KV-aware routing of texts is off"
    shown = printed(call(*PLAN, f"model.path={folder}"))
    assert f"{off}, and they are routed by load: model.path={folder} has no" in shown
    assert off not in printed(call(*PLAN, f"model.path={folder}", "router=round_robin"))


def test_every_model_and_lora_adapter_is_checked(call: Call, tmp_path: Path, empty: Path) -> None:
    folder, half = model_folder(tmp_path / "model"), adapter_folder(tmp_path / "half")
    (half / "adapter_config.json").unlink()
    words = ("models.a.path=" + str(folder), f"models.b.path={empty}", f"models.a.lora.x={half}")
    pools = [f"models.{name}.topology=aggregated" for name in "ab"]
    refused(
        call("plan", *words, *pools, "cluster.gpus_per_node=2"),
        f"models.a: model.lora.x={half} cannot be loaded: adapter_config.json: missing",
        f"models.b: model.path={empty} cannot be loaded: the folder is empty",
    )


def test_doctor_reports_an_empty_model_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({}))
    file = tmp_path / "found.json"
    words = ("engine=simulator", "cluster.launcher=local", "topology.nodes=2")
    more = (f"model.path={folder}", "--json", str(file))
    done = hpc_dynamo("doctor", *words, *more, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    report = read_json(file, DoctorReport)
    assert report
    said = [f.what for f in report.findings if f.check == "model"]
    assert said == [f"model.path={folder} cannot be loaded: config.json: an empty JSON object"] * 2
