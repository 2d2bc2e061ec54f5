"""A run is not resumed with settings that change answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.batch.input_file import BatchInput
from hpc_dynamo.cli.run_folder import batch_run, profile_run, serve_run
from hpc_dynamo.config import Config, Engine, Task
from hpc_dynamo.engines.answer_settings import answer_settings, changes_answers, differences
from hpc_dynamo.errors import ConfigError
from tests.integration.results.kept import Start, attempt, good, refused, with_fields
from tests.support.runs import SIMULATOR, hpc_dynamo, write_prompts


def test_whitespace_in_json_does_not_change_settings() -> None:
    texts = ('{"a":{"b":1}}', '{"a": {"b": 1}}', {"a": {"b": 1}})
    configs = (Config(engine=Engine(args={"hf-overrides": each})) for each in texts)
    first, *others = map(answer_settings, configs)
    assert first["engine.args.hf-overrides.a.b"] == "1"
    assert others == [first, first]


OTHER = [
    ({"model__path": "org/other"}, "model.path: org/model → org/other"),
    ({"model__name": "mine"}, "model.name: model → mine"),
    ({"engine__name": "sglang"}, "engine.name: vllm → sglang"),
    ({"model__lora": {"sql": "/a/sql"}}, "model.lora.sql: not set → /a/sql"),
    ({"batch__body_defaults": {"max_tokens": 3}}, "batch.body_defaults.max_tokens: not set → 3"),
    (
        {"batch__body_defaults": {"stop": ["a", "b"]}},
        'batch.body_defaults.stop: not set → ["a","b"]',
    ),
    (
        {"batch__body_defaults": {"extra": {"seed": 1}}},
        "batch.body_defaults.extra.seed: not set → 1",
    ),
    ({"engine__args": {"dtype": "bfloat16"}}, "engine.args.dtype: float32 → bfloat16"),
    ({"engine__args": {}}, "engine.args.dtype: float32 → not set"),
    (
        {"engine__args": {"dtype": "float32", "chat_template": "t.jinja"}},
        "engine.args.chat-template: not set → t.jinja",
    ),
    (
        {"engine__args": {"dtype": "float32", "hf-overrides": {"a": {"b": True}}}},
        "engine.args.hf-overrides.a.b: not set → true",
    ),
    ({"engine__decode__args": {"seed": 7}}, "engine.decode.args.seed: not set → 7"),
]


@pytest.mark.parametrize(("changed", "named"), OTHER)
@pytest.mark.parametrize("lines", [[0], [0, 1, 2, 3]], ids=["unfinished", "complete"])
def test_changed_settings_are_rejected_by_name(
    start: Start,
    config: Config,
    changed: dict[str, Any],
    named: str,
    lines: list[int],
) -> None:
    run = start(config)
    attempt(run, config, *map(good, lines))
    error = refused(start, with_fields(config, **changed))
    assert f"{run.path} holds {len(lines)} answers made with other settings" in error.message
    assert named in error.message
    assert error.hint.startswith("name=r-2 for a run of its own, or overwrite=true")
    start(config)  # the same settings resume


SAME = [
    {"engine__args": {"dtype": "float32", "gpu-memory-utilization": 0.8}},
    {"engine__args": {"dtype": "float32", "max_num_batched_tokens": 512}},
    {"engine__args": {"dtype": "float32", "seed": None}},
    {"engine__args": {"dtype": "float32", "compilation-config": {"level": 3}}},
    {"engine__env": {"NCCL_DEBUG": "INFO"}},
    {"engine__max_num_seqs": 7},
    {"topology__aggregated__workers": 5},
    {"topology__aggregated__tensor_parallel": 2},
    {"cluster__slurm__partition": "gpu"},
    {"router__temperature": 0.5},
    {"batch__max_retries": 0},
    {"batch__body_defaults": {"temperature": None}},
]


@pytest.mark.parametrize("changed", SAME, ids=str)
def test_run_resumes_with_other_speed_settings(
    start: Start, config: Config, changed: dict[str, Any]
) -> None:
    attempt(start(config), config, good(0))
    start(with_fields(config, **changed))


@pytest.mark.parametrize(
    ("engine", "option", "expected"),
    [
        ("vllm", "max-model-len", True),
        ("vllm", "quantization", True),
        ("vllm", "kv-cache-dtype", True),
        ("vllm", "load-format", True),
        ("vllm", "an-option-of-a-later-version", True),
        ("vllm", "kv-transfer-config.kv_connector", False),
        ("sglang", "mem-fraction-static", False),
        ("sglang", "context-length", True),
        ("trtllm", "extra.kv-cache-config.free-gpu-memory-fraction", False),
        ("trtllm", "extra.kv-cache-config.dtype", True),
        ("simulator", "time-scale", False),
        ("simulator", "seed", True),
        ("another engine", "gpu-memory-utilization", True),
    ],
)
def test_engine_options_that_change_answers_are_compared(
    engine: str, option: str, expected: bool
) -> None:
    assert changes_answers(engine, option) is expected


def test_number_and_text_are_the_same_option(config: Config) -> None:
    number = with_fields(config, engine__args={"max-model-len": 2048, "trust-remote-code": True})
    text = with_fields(config, engine__args={"max_model_len": "2048", "trust_remote_code": "true"})
    assert differences(answer_settings(number), answer_settings(text)) == []


def test_model_folder_is_compared_by_resolved_path(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    one, other = (with_fields(config, model__path=p) for p in ("m", str(tmp_path / "m")))
    assert differences(answer_settings(one), answer_settings(other)) == []


def test_settings_may_change_without_results(start: Start, config: Config) -> None:
    """The engine of the first attempt did not start, so its option may be corrected."""
    attempt(start(config), config)
    run = start(with_fields(config, engine__args={"dtype": "float16"}))
    attempt(run, config, good(0))
    assert "dtype: float16 → float32" in refused(start, config).message


def test_run_of_previous_version_uses_last_attempt(start: Start, config: Config) -> None:
    run = start(config)
    attempt(run, config, good(0))
    run.settings_file.unlink()
    assert "model.path" in refused(start, with_fields(config, model__path="org/b")).message
    start(config)
    assert run.settings_file.exists()


def test_differences_are_listed_one_per_line(start: Start, config: Config) -> None:
    attempt(start(config), config, good(0))
    other = with_fields(config, model__path="org/b", batch__body_defaults={"n": 2, "seed": 1})
    lines = refused(start, other).message.splitlines()[1:]
    names = [line.split(":")[0].strip() for line in lines]
    assert names == [
        "model.path",
        "model.name",
        "batch.body_defaults.n",
        "batch.body_defaults.seed",
    ]


def test_proposed_name_is_free_and_quoted(start: Start, config: Config, tmp_path: Path) -> None:
    config = replace(config, name="it's a run")
    attempt(start(config), config, good(0))
    (tmp_path / "runs" / "it's a run-2").mkdir()
    hint = refused(start, with_fields(config, model__path="org/b")).hint
    assert hint.startswith("""'name=it'"'"'s a run-3' for a run of its own""")


def test_profile_reports_changed_settings(config: Config, requests: BatchInput) -> None:
    config = replace(config, task=Task.profile)
    run = profile_run(config, print)
    attempt(run, config, b"{}\n")
    profile_run(config, print)
    other = with_fields(config, engine__max_num_seqs=5, topology__aggregated__tensor_parallel=2)
    with pytest.raises(ConfigError) as caught:
        profile_run(other, print)
    assert "engine.max_num_seqs: 256 → 5" in caught.value.message
    assert "topology.aggregated.tensor_parallel: 1 → 2" in caught.value.message
    batch = replace(config, task=Task.batch)
    with pytest.raises(ConfigError, match="holds other results, those of a profile"):
        batch_run(batch, requests, print)
    run.settings_file.unlink()  # written by the previous version
    with pytest.raises(ConfigError, match=r"engine\.max_num_seqs"):
        profile_run(other, print)


def test_serve_rejects_folder_of_batch(config: Config, start: Start) -> None:
    start(config)
    with pytest.raises(ConfigError, match="holds results"):
        serve_run(replace(config, task=Task.serve), print)


def test_two_models_on_one_input_are_rejected(tmp_path: Path) -> None:
    write_prompts(tmp_path / "in.jsonl", 3)
    words = ("batch", *SIMULATOR, "input=in.jsonl")
    first = hpc_dynamo(*words, "model.name=a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    other = hpc_dynamo(*words, "model.name=b", cwd=tmp_path)
    assert other.returncode == 3, other.stdout
    assert "model.name: a → b" in other.stderr
    own = hpc_dynamo(*words, "model.name=b", "name=in-2", cwd=tmp_path)
    assert own.returncode == 0, own.stderr
    same = hpc_dynamo(*words, "model.name=a", "engine.args.time-scale=0.5", cwd=tmp_path)
    assert "nothing to do" in same.stdout
