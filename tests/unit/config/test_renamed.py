"""Old names of fields: accepted with a warning, on the command line and in files."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.overrides import renamed
from hpc_dynamo.cli.overrides.renamed import current_name
from hpc_dynamo.config import Config, schema_fields
from hpc_dynamo.config.schema.setting import own_fields

# Old and current name of each renamed field, and a valid value.
RENAMED = [
    ("runs", "runs_dir", "/shared/runs"),
    ("batch.defaults.max_tokens", "batch.body_defaults.max_tokens", 7),
    ("batch.retries", "batch.max_retries", 5),
    ("cluster.silence_s", "cluster.heartbeat_timeout_s", 60.0),
    ("cluster.slurm.mixed", "cluster.slurm.heterogeneous", "jobs"),
    ("engine.kv_load_failure", "engine.kv_load_failure_policy", "fail"),
    ("engine.restarts", "engine.max_restarts", 5),
    ("engine.sleep", "engine.sleep_mode", True),
    ("planner.by", "planner.mode", "load"),
    ("planner.drain_s", "planner.drain_timeout_s", 7.0),
    ("planner.grow.idle_s", "planner.scale_out.scale_in_delay_s", 7.0),
    ("planner.grow.node_hours", "planner.scale_out.max_node_hours", 7.0),
    ("planner.grow.nodes", "planner.scale_out.max_nodes", 7),
    ("planner.grow.nodes_each", "planner.scale_out.nodes_per_job", 7),
    ("planner.handover", "planner.job_handover", True),
    ("planner.handover_lead_s", "planner.job_handover_lead_s", 7.0),
    ("planner.kv_high", "planner.kv_usage_high", 0.7),
    ("planner.kv_low", "planner.kv_usage_low", 0.1),
    ("planner.least_decode", "planner.min_decode_workers", 7),
    ("planner.least_prefill", "planner.min_prefill_workers", 7),
    ("planner.margin", "planner.hysteresis", 0.5),
    ("planner.patience", "planner.stabilization_intervals", 7),
    ("planner.protect", "planner.priority_target", "ttft"),
    ("planner.queue_high_s", "planner.prefill_wait_threshold_s", 7.0),
    ("planner.restart", "planner.restart_on_role_change", True),
    ("route.key_file", "route.api_key_file", "/key"),
    ("router.cached_blocks", "router.index_capacity_blocks", 7),
    ("router.guess_ttl_s", "router.approximate_ttl_s", 7.0),
    ("router.handover_tokens", "router.transfer_cost_tokens", 7),
    ("router.local_penalty", "router.decode_prefill_penalty", 7.0),
    ("router.local_prefill", "router.conditional_disaggregation", False),
    ("router.worker_prefill_tokens", "router.max_prefill_tokens_per_worker", 7),
    ("serve.buffer_mb", "serve.max_buffered_mb", 7.0),
    ("serve.frontends", "serve.frontend_processes", 7),
    ("serve.key_file", "serve.api_key_file", "/key"),
    ("serve.queue", "serve.max_queued_requests", 7),
    ("serve.worker_requests", "serve.max_requests_per_worker", 7),
    ("simulate.cache_tokens", "simulate.kv_cache_tokens", 7),
    ("simulate.picture", "simulate.plot", "/roles.png"),
    ("simulate.requests", "simulate.max_requests", 7),
    ("simulate.search", "simulate.search_split", True),
    ("simulate.step_tokens", "simulate.max_num_batched_tokens", 7),
    ("simulate.timing", "simulate.timing_model", "a100-8b"),
    ("simulate.transfer_us", "simulate.kv_transfer_us_per_token", 7.0),
    ("simulate.turn_s", "simulate.role_change_s", 7.0),
]


@pytest.fixture(autouse=True)
def _new_process() -> None:
    """Forget which warnings were printed."""
    renamed._warn.cache_clear()


def value(config: Config, name: str) -> Any:
    found: Any = msgspec.to_builtins(config)
    for key in name.split("."):
        found = found[key]
    return found


def nested(name: str, value: object) -> str:
    """YAML that sets one field."""
    *above, last = name.split(".")
    lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(above)]
    return "\n".join([*lines, f"{'  ' * len(above)}{last}: {msgspec.json.encode(value).decode()}"])


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the text on stderr without the line breaks of the console."""
    return " ".join(capsys.readouterr().err.split())


def test_override_with_old_name_sets_field_and_warns(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [str(given).lower() if isinstance(given, bool) else given for *_, given in RENAMED]
    pairs = zip(RENAMED, texts, strict=True)
    check(compose([f"{old}={text}" for (old, *_), text in pairs]), shown(capsys))


def test_file_with_old_name_sets_field_and_warns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe").mkdir()
    files = [tmp_path / "recipe" / f"{number}.yaml" for number in range(len(RENAMED))]
    for file, (old, _, given) in zip(files, RENAMED, strict=True):
        file.write_text(f"# @package _global_\n{nested(old, given)}\n")
    everything = "\n".join(f"  - {file.stem}" for file in files)
    (tmp_path / "recipe" / "all.yaml").write_text(f"# @package _global_\ndefaults:\n{everything}\n")
    check(compose(["recipe=all"], tmp_path), shown(capsys))


def check(config: Config, warnings: str) -> None:
    """Check the value of each renamed field, and the warning for its old name."""
    for old, new, given in RENAMED:
        assert value(config, new) == given, new
        assert f"{old} is now {new};" in warnings


def test_table_has_every_renamed_field() -> None:
    old = {f.name for f in schema_fields(Config) if f.info.was and "*" not in f.name}
    sections = {"planner.scale_out", "batch.body_defaults"}
    assert {new for _, new, _ in RENAMED} | sections == old | {"batch.body_defaults.max_tokens"}


def test_no_old_name_is_a_current_name_of_its_section() -> None:
    for field in schema_fields(Config):
        if isinstance(field.type, type) and hasattr(field.type, "__dataclass_fields__"):
            own = list(own_fields(field.type))
            assert not {each.name for each in own} & {each.info.was for each in own}, field.name


def test_file_of_group_with_old_name_overrides_and_warns_with_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "site.yaml").write_text("launcher: slurm\nsilence_s: 90\n")
    assert compose(["cluster=site"], tmp_path).cluster.heartbeat_timeout_s == 90
    assert f"{tmp_path}/cluster/site.yaml:2: cluster.silence_s is now" in shown(capsys).replace(
        " site.yaml", "site.yaml"
    )


def test_file_with_old_name_wins_over_default_file_with_current_name(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    text = "# @package _global_\nserve:\n  queue: 9\nbatch:\n  retries: 8\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(text)
    config = compose(["recipe=mine"], tmp_path)
    assert (config.serve.max_queued_requests, config.batch.max_retries) == (9, 8)


def test_interpolation_of_old_name_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "mine.yaml").write_text("env: {N: '${engine.restarts}'}\n")
    assert compose(["engine=mine", "engine.max_restarts=4"], tmp_path).engine.env == {"N": "4"}


def test_model_of_several_accepts_old_names() -> None:
    config = compose(["models.a.path=/a", "models.a.engine.restarts=7"])
    assert config.models["a"].engine.max_restarts == 7


def test_removal_of_old_name_resets_field() -> None:
    assert compose(["engine.max_restarts=7", "~engine.restarts"]).engine.max_restarts == 2


def test_current_names_cause_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    compose([])
    assert current_name("engine.max_restarts") == "engine.max_restarts"
    assert current_name("engine.args.sleep") == "engine.args.sleep"
    assert not shown(capsys)
