"""From overrides to a configuration, and error messages for wrong overrides."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo.cli.commands import RUN_VERBS
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.conf_folders import conf_dir
from hpc_dynamo.cli.overrides.commented import commented
from hpc_dynamo.config import Device, Launcher, PlannerMode, Policy, Task, TopologyKind
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import plan

GROUPS = sorted(f"{file.parent.name}={file.stem}" for file in conf_dir().glob("*/*.yaml"))


def test_without_overrides_it_is_vllm_with_one_worker_a_role() -> None:
    config = compose([])
    assert (config.engine.name, config.engine.device) == ("vllm", Device.cuda)
    assert config.topology.kind is TopologyKind.disaggregated
    assert (config.topology.prefill.workers, config.topology.decode.workers) == (1, 1)


@pytest.mark.parametrize("choice", GROUPS)
def test_every_file_of_conf_composes(choice: str) -> None:
    composed = compose([choice])
    assert msgspec.json.decode(msgspec.json.encode(composed), type=type(composed)) == composed


def test_the_planner_is_off_unless_asked_for() -> None:
    assert compose([]).planner.mode is PlannerMode.off
    assert compose(["planner=load"]).planner.mode is PlannerMode.load
    assert compose(["planner=sla", "planner.profile=p.json"]).planner.profile == "p.json"


@pytest.mark.parametrize("name", ["kalman", "arima"])
def test_removed_predictor_is_rejected_with_hint(name: str) -> None:
    with pytest.raises(ConfigError, match="was removed") as caught:
        compose([f"planner.forecast={name}"])
    assert caught.value.hint == "planner.forecast=holt"


def test_overrides_reach_every_depth() -> None:
    config = compose(
        [
            "topology.decode.tensor_parallel=4",
            "cluster=slurm",
            "cluster.slurm.partition=gpu",
            "cluster.slurm.srun_args=[--label,'--cpu-bind=none']",
            "cluster.slurm.exclusive=true",
            "batch.max_retries=7",
        ]
    )
    assert config.topology.decode.tensor_parallel == 4
    assert config.cluster.launcher is Launcher.slurm
    assert config.cluster.slurm.partition == "gpu"
    assert config.cluster.slurm.srun_args == ("--label", "--cpu-bind=none")
    assert config.cluster.slurm.exclusive is True
    assert config.batch.max_retries == 7


def test_free_fields_take_any_key_without_a_plus() -> None:
    config = compose(
        [
            "engine.args.max-model-len=8192",
            'engine.args.compilation-config={"level": 3}',
            "engine.env.NCCL_DEBUG=INFO",
            "batch.body_defaults.max_tokens=256",
            "cluster.slurm.extra.mail-type=END",
        ]
    )
    args = {"max-model-len": 8192, "compilation-config": '{"level": 3}'}
    assert config.engine.args == args
    assert config.engine.env == {"NCCL_DEBUG": "INFO"}
    assert config.batch.body_defaults == {"max_tokens": 256}
    assert config.cluster.slurm.extra == {"mail-type": "END"}


@pytest.mark.parametrize(
    "path", ["/data/my prompts.jsonl", "/data/a=b.jsonl", "/data/ü.jsonl", "/data/it's.jsonl"]
)
def test_paths_with_odd_characters(path: str) -> None:
    quoted = path.replace("'", "\\'")
    assert compose([f"input='{quoted}'"]).input == path


@pytest.mark.parametrize(
    ("override", "what", "remedy"),
    [
        ("topology.decode.worker=2", "topology.decode.worker is not a field", "mean workers?"),
        ("topolgy.nodes=2", "topolgy is not a field", "did you mean topology?"),
        ("name.first=x", "name.first is not a field", "name is a value"),
        ("+extra=1", "extra is not a field", "known: batch, cluster"),
        ("+topology.router=1", "topology.router is not a field", "known: aggregated, decode"),
        ("topology.decode.workers=two", "topology.decode.workers=two", "=1"),
        ("topology.decode.workers=1.5", "topology.decode.workers=1.5", "=1"),
        ("cluster.slurm.exclusive=maybe", "cluster.slurm.exclusive=maybe", "=false"),
        ("engine=vlm", "engine='vlm' is not known", "did you mean 'vllm'?"),
        ("planner=sls", "planner='sls' is not known", "known: load, off, sla"),
        ("planner.forecast=prophet", "planner.forecast=prophet", "planner.forecast="),
        ("topology=star", "topology='star' is not known", "aggregated, disaggregated"),
        ("cluster.launcher=cloud", "cluster.launcher=cloud", "=auto"),
        ("engine.device=tpu", "engine.device=tpu", "=cuda"),
        ("nonsense", "nonsense", "input=prompts.jsonl"),
        ("topology=null", "topology='null' is not known", "aggregated, disaggregated"),
        ("engine", "engine is a group of files", "engine=FILE; known: sglang"),
        ("/tmp", "/tmp is neither an option nor FIELD=VALUE", "model.path=/tmp"),
        (".", ". is neither an option nor FIELD=VALUE", "model.path=."),
        ("../", "../ is neither an option nor FIELD=VALUE", "model.path=../"),
        ("engine.env.=1", "engine.env. has an empty name", "engine.env.NAME=VALUE"),
        ("~engine.args.no-such", "engine.args.no-such is not set", "plan --show"),
    ],
)
def test_a_wrong_override_is_explained(override: str, what: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose([override])
    assert what in refused.value.message
    assert remedy in refused.value.hint
    assert "Traceback" not in str(refused.value)


def test_a_free_field_takes_a_whole_mapping() -> None:
    assert compose(["batch.body_defaults={temperature: 0}"]).batch.body_defaults == {
        "temperature": 0
    }


def test_config_dir_adds_files_and_replaces_built_in_ones(tmp_path: Path) -> None:
    own = tmp_path / "my conf"
    (own / "cluster").mkdir(parents=True)
    (own / "cluster" / "alps.yaml").write_text("launcher: slurm\nslurm:\n  account: g42\n")
    config = compose(["cluster=alps"], own)
    assert config.cluster.launcher is Launcher.slurm
    assert config.cluster.slurm.account == "g42"


def test_a_file_of_ones_own_is_held_to_the_schema(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "typo.yaml").write_text("slurm:\n  acount: g42\n")
    with pytest.raises(ConfigError) as refused:
        compose(["cluster=typo"], tmp_path)
    assert "acount" in str(refused.value)


def test_calls_do_not_leak_into_each_other() -> None:
    compose(["engine=simulator", "engine.args.timing=h100-8b", "name=x"])
    assert compose([]) == compose([])
    assert compose([]).name == ""


def test_show_is_yaml_that_composes_to_the_same(tmp_path: Path) -> None:
    config = compose(["engine=simulator", "topology.decode.workers=3"])
    (tmp_path / "batch").mkdir()  # the last group, so that it wins
    body = "# @package _global_\n" + commented(config)
    (tmp_path / "batch" / "saved.yaml").write_text(body)
    assert compose(["batch=saved"], tmp_path) == config


SEVERAL = [
    *("engine=simulator", "engine.args.block-size=32", "topology.decode.workers=5"),
    "topology.nodes=3",
    *("models.llama-3.1-8b.path=/shared/8b", "models.llama-3.1-8b.topology=aggregated"),
    *("models.llama-3.1-8b.topology.aggregated.workers=2", "models.org/large.path=/shared/70b"),
    *("models.org/large.engine.args.timing=a100-8b", "models.org/large.router=session"),
]


def test_model_of_several_is_composed_like_a_run_of_one_model() -> None:
    config = compose(SEVERAL)
    assert list(config.models) == ["llama-3.1-8b", "org/large"]
    assert config.task is Task.serve
    small, large = config.by_model.values()
    assert (small.model.path, small.served_name) == ("/shared/8b", "llama-3.1-8b")
    assert (small.topology.kind, small.topology.aggregated.workers) == (TopologyKind.aggregated, 2)
    assert small.topology.decode.workers == 0, "its own file of the group begins it anew"
    assert small.topology.nodes == large.topology.nodes == 3
    assert small.engine.args == {"block-size": 32}
    assert (large.topology.kind, large.topology.decode.workers) == (TopologyKind.disaggregated, 5)
    assert large.engine.args == {"block-size": 32, "timing": "a100-8b"}
    assert (small.router.policy, large.router.policy) == (Policy.kv, Policy.session)
    assert small.models == large.models == {}


def test_a_model_may_be_a_recipe() -> None:
    words = ["engine=sglang", "engine.python=/env", "cluster.gpus_per_node=8"]
    recipe = ["models.small.recipe=llama-8b-vllm", "models.small.topology.aggregated.workers=4"]
    config = compose([*words, *recipe, "models.other.path=/b"])
    small, other = config.by_model.values()
    assert small.model.path.endswith("Llama-3.1-8B-Instruct")
    assert (small.engine.name, small.engine.python) == ("vllm", "/env")
    assert small.engine.args["max-model-len"] == 32768
    assert (small.topology.kind, small.topology.aggregated.workers) == (TopologyKind.aggregated, 4)
    assert small.topology.nodes is None, "the nodes are all models'"
    assert (other.engine.name, other.engine.args) == ("sglang", {})
    assert plan(config).nodes == 1


def test_without_models_there_is_one_under_no_name() -> None:
    config = compose(["engine=simulator"])
    assert config.by_model == {"": config}
    assert config.task is Task.batch


def test_models_of_a_file_and_words_on_them(tmp_path: Path) -> None:
    (tmp_path / "batch").mkdir()
    text = """# @package _global_
models:
  llama-3.1-8b:
    path: /shared/8b
    topology: {kind: aggregated, aggregated: {workers: 3}}
    engine: {args: {max-model-len: 4096}}
  large:
    path: /shared/70b
    topology: disaggregated
    engine: sglang
"""
    (tmp_path / "batch" / "ours.yaml").write_text(text)
    words = ["models.large.topology.decode.workers=2", "models.llama-3.1-8b.engine.max_num_seqs=8"]
    small, large = compose(["batch=ours", *words], tmp_path).by_model.values()
    assert (small.topology.kind, small.topology.aggregated.workers) == (TopologyKind.aggregated, 3)
    assert (small.engine.args, small.engine.max_num_seqs) == ({"max-model-len": 4096}, 8)
    assert (large.engine.name, large.topology.decode.workers) == ("sglang", 2)
    assert (small.model.path, large.model.path) == ("/shared/8b", "/shared/70b")


def test_several_models_shown_are_yaml_that_composes_to_the_same(tmp_path: Path) -> None:
    config = compose(SEVERAL)
    (tmp_path / "batch").mkdir()
    body = "# @package _global_\n" + commented(config)
    (tmp_path / "batch" / "saved.yaml").write_text(body)
    assert compose(["batch=saved"], tmp_path) == config


@pytest.mark.parametrize(
    ("override", "what", "remedy"),
    [
        ("models.a.pth=/x", "models.a.pth is not a field", "did you mean path? known: engine"),
        ("models.a=/x", "models.a is a model, not a value", "models.a.path="),
        ("models.a.topology.decode.worker=2", "models.a: topology.decode.worker is", "workers?"),
        ("models.a.topology=star", "models.a: topology='star' is not known", "aggregated"),
        ("models.a.cluster.launcher=local", "models.a.cluster is not a field", "known: engine"),
        ("models={a: 7}", "models.a=7 is not a model", "path"),
        ("models={a: {pth: /x}}", "models.a.pth is not a field", "did you mean path?"),
    ],
)
def test_a_wrong_word_on_a_model_is_explained(override: str, what: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(["engine=simulator", override])
    assert what in refused.value.message
    assert remedy in refused.value.hint


def test_built_in_files_that_are_composed_once_are_not_shared() -> None:
    first = compose(["engine=vllm-cpu", "engine.args.x=1", "~engine.args.dtype"])
    second = compose(["engine=vllm-cpu"])
    assert "x" in first.engine.args
    assert "x" not in second.engine.args
    assert second.engine.args["dtype"]


def test_verbs_for_the_folder_of_a_run_do_not_import_hydra() -> None:
    """The import takes as long as the rest of a start of the command line."""
    code = (
        "import sys\n"
        "from hpc_dynamo.cli import command_line, parser\n"
        f"for verb in {RUN_VERBS}: parser.parse([verb, 'runs/x'])\n"
        "sys.exit('hydra' in sys.modules or 'omegaconf' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
