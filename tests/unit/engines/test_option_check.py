"""Options of users that are refused before submission: controlled by the toolkit, or unknown."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.render.engine_commands import shard_command, started_shards
from hpc_dynamo.config import Config
from hpc_dynamo.engines import engine
from hpc_dynamo.engines.contract import contracts, option_names
from hpc_dynamo.engines.option_check import check_options, resolve_name
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import plan
from tests.unit.config.test_recipes import RECIPES

ENGINES = ("sglang", "trtllm", "vllm")

# Defaults of the toolkit that a user may override. kv-transfer-config is merged. Recipes set the
# number of sequences of one role.
DEFAULTS = {
    "vllm": "distributed-executor-backend enable-prompt-tokens-details enable-request-id-headers "
    "kv-events-config kv-transfer-config max-cpu-loras max-lora-rank max-loras max-num-seqs",
    "sglang": "device disable-overlap-schedule disaggregation-decode-retraction-backup "
    "disaggregation-transfer-backend enable-cache-report enable-memory-saver enable-metrics "
    "enable-pd-role-switch "
    "enable-weights-cpu-backup kv-events-config max-running-requests page-size sleep-on-idle",
    # The adapter refuses the options file with words of its own.
    "trtllm": "backend extra-llm-api-options max-batch-size",
}
BASE = ("model.path=/m", "cluster.gpus_per_node=8")
ONE = "topology=aggregated"
LORA = tuple(f"model.lora.a{at}=org/b" for at in range(9))
CONFIGS = {
    "vllm": [
        (),
        (ONE, *LORA),
        ("engine.sleep_mode=true",),
        (ONE, "topology.aggregated.tensor_parallel=16"),
        (ONE, "topology.aggregated.data_parallel=16"),
    ],
    "sglang": [
        (),
        ("planner=load",),
        (ONE, *LORA, "engine.sleep_mode=true"),
        ("engine.device=cpu",),
        (ONE, "topology.aggregated.tensor_parallel=16"),
    ],
    "trtllm": [(), (ONE, "topology.aggregated.tensor_parallel=16")],
}


@cache
def composed(name: str, *words: str) -> Config:
    return compose([f"engine={name}", *BASE, *words])


def configured(name: str, *words: str, **args: Any) -> Config:
    """Return the configuration of an engine with options of all workers."""
    made = composed(name, *words)
    return replace(made, engine=replace(made.engine, args={**made.engine.args, **args}))


def refusal(name: str, *words: str, **args: Any) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        check_options(configured(name, *words, **args), engine(name))
    return refused.value


def accepted(name: str, *words: str, **args: Any) -> None:
    check_options(configured(name, *words, **args), engine(name))


def generated(name: str, words: tuple[str, ...]) -> Iterator[str]:
    """Yield the first names of the options in the commands of all workers."""
    config = configured(name, *words)
    for worker in plan(config).workers:
        for shard in started_shards(config, worker):
            argv = shard_command(config, worker, shard).argv
            yield from (resolve_name(name, word) for word in argv if word.startswith("--"))


@pytest.mark.parametrize("name", ENGINES)
def test_every_generated_option_is_controlled_or_a_default(name: str) -> None:
    found = {option for words in CONFIGS[name] for option in generated(name, words)}
    controlled = {resolve_name(name, option) for option in engine(name).controlled_options}
    defaults = {resolve_name(name, option) for option in DEFAULTS[name].split()}
    assert controlled & defaults == set()
    assert found - controlled <= defaults


@pytest.mark.parametrize("name", ENGINES)
def test_controlled_options_are_refused_in_every_spelling(name: str) -> None:
    adapter = engine(name)
    for option, field in adapter.controlled_options.items():
        own = resolve_name(name, option)
        spellings = {plain for plain, first in option_names(name).items() if first == own}
        assert spellings or option == "model", option
        for plain in spellings:
            for written in (plain, plain.replace("-", "_"), f"--{plain}", f"-{plain}"):
                error = refusal(name, **{written: 4})
                assert error.message.startswith(f"engine.args.{written}: hpc-dynamo sets --{own}")
                assert field.partition("=")[0].partition("{")[0] in str(error)


@pytest.mark.parametrize(
    ("words", "field", "hint"),
    [
        (
            ("engine.args.tp=4",),
            "engine.args.tp",
            "topology.prefill.tensor_parallel=4 topology.decode.tensor_parallel=4",
        ),
        ((ONE, "engine.args.tp=4"), "engine.args.tp", "topology.aggregated.tensor_parallel=4"),
        (
            ("engine.decode.args.tensor_parallel_size=2",),
            "engine.decode.args.tensor_parallel_size",
            "topology.decode.tensor_parallel=2",
        ),
        (("engine.args.port=80",), "engine.args.port", "serve.port=80"),
        (("engine.args.tensor-par=2", ONE), "engine.args.tensor-par", "topology.aggregated"),
        (("engine.args.middleware=x.Y",), "engine.args.middleware", "remove engine.args.middl"),
        (("engine.args.enable-lora=true",), "engine.args.enable-lora", "remove engine.args.enab"),
        (("engine.args.master-port=null",), "engine.args.master-port", "remove engine.args."),
        # Also for engines of other versions: the toolkit would not work.
        (("engine.args.host=x", "engine.check_options=false"), "engine.args.host", "serve.host=x"),
    ],
)
def test_refusal_of_controlled_option_names_its_field(
    words: tuple[str, ...], field: str, hint: str
) -> None:
    error = refusal("vllm", *words)
    assert error.message.startswith(f"{field}: hpc-dynamo sets --")
    assert error.hint.startswith(hint)


def test_key_in_an_option_is_not_printed() -> None:
    for name in ("vllm", "sglang"):
        assert "s3cret" not in str(refusal(name, "engine.args.api-key=s3cret"))


@pytest.mark.parametrize(
    ("name", "option", "hint"),
    [
        ("vllm", "max-modle-len", "did you mean engine.args.max-model-len?"),
        ("vllm", "gpu_memory_utilisation", "did you mean engine.args.gpu-memory-utilization?"),
        ("vllm", "--max-model-len", "did you mean engine.args.max-model-len?"),
        ("vllm", "q", "did you mean engine.args.quantization?"),
        ("vllm", "max-model", "did you mean engine.args.max-model-len?"),
        ("vllm", "mem-fraction-static", "did you mean engine.args.gpu-memory-utilization?"),
        ("vllm", "page-size", "engine.check_options=false if your vllm has other options than"),
        ("sglang", "mem-fraction", "did you mean engine.args.mem-fraction-static?"),
        ("sglang", "max-model-len", "did you mean engine.args.context-length?"),
        ("trtllm", "max_num_token", "did you mean engine.args.max-num-tokens?"),
        ("trtllm", "enforce-eager", "engine.check_options=false"),
    ],
)
def test_unknown_options_are_refused(name: str, option: str, hint: str) -> None:
    error = refusal(name, **{option: 4})
    assert error.message.startswith(f"engine.args.{option}: --")
    assert f" is not an option of {name} " in error.message
    assert error.hint.startswith(hint)
    assert contracts(name)[-1].version in error.hint
    accepted(name, "engine.check_options=false", **{option: 4})


def test_options_of_one_version() -> None:
    new, old = {"monokernel": True}, {"engine.version=0.32"}
    accepted("vllm", **new)
    accepted("vllm", "engine.version=0.33.0", **new)
    error = refusal("vllm", *old, **new)
    assert error.message == "engine.args.monokernel: --monokernel is not an option of vllm 0.32.0"
    accepted("vllm", "engine.version=0.40", **new)  # not recorded: all versions count
    assert "engine.version=new is no version" in str(refusal("vllm", "engine.version=new"))


def test_option_of_another_engine_is_named() -> None:
    assert refusal("vllm", **{"mem-fraction-static": 1}).message.endswith("; sglang has it")
    assert refusal("sglang", **{"max-model-len": 1}).message.endswith("; vllm has it")


def test_flags_without_negative_form_cannot_be_false() -> None:
    error = refusal("vllm", **{"disable-log-stats": False})
    assert "--no-disable-log-stats is not an option of vllm 0.32.0 and" in error.message
    accepted("vllm", **{"enable-prefix-caching": False, "disable-log-stats": True})
    accepted("sglang", **{"disable-radix-cache": False})


@pytest.mark.parametrize(
    "words",
    [
        ("vllm", "engine.args.max_model_len=4096", "engine.args.no-enable-prefix-caching=true"),
        ("vllm", "engine.args.kv-transfer-config.kv_port=7", "engine.args.unheard-of=null"),
        ("vllm", "engine.args.device-memory-utilization=0.5"),  # an alias
        ("sglang", "engine.args.mem_fraction_static=0.8", "engine.args.ep=2"),
        ("trtllm", "engine.args.ep-size=4", "engine.args.extra.enable_attention_dp=true"),
        ("simulator", "engine.args.port=1", "engine.args.unheard-of=1"),
    ],
)
def test_known_options_are_accepted(words: tuple[str, ...]) -> None:
    accepted(*words)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_accepted(recipe: str) -> None:
    config = compose([f"recipe={recipe}", "cluster.gpus_per_node=8"])
    check_options(config, engine(config.engine.name))
