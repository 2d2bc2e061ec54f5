"""Every option of every recipe is one that its engine knows, on each node of each worker."""

from collections.abc import Callable

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.render.engine_commands import shard_command, started_shards
from hpc_dynamo.engines import EngineCommand
from hpc_dynamo.topology import plan
from tests.unit.config.test_recipes import RECIPES
from tests.unit.engines.contract import test_sglang, test_trtllm, test_vllm
from tests.unit.engines.test_engines import options

# What an engine would refuse of a command.
REFUSES: dict[str, Callable[[EngineCommand], list[str]]] = {
    "sglang": lambda made: test_sglang.wrong(list(made.argv[3:])),
    "trtllm": test_trtllm.unknown,
    "vllm": lambda made: test_vllm.wrong(list(made.argv[3:])),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_engine_knows_every_option_of_recipe(recipe: str) -> None:
    config = compose([f"recipe={recipe}", "cluster.gpus_per_node=8"])
    for worker in plan(config).workers:
        for part in started_shards(config, worker):
            made = shard_command(config, worker, part)
            assert REFUSES[config.engine.name](made) == [], (worker, part)


def test_vllm_recipe_steps_hold_all_requests_of_a_rank() -> None:
    """With DeepEP's low latency a step of vLLM 0.32 has 256 tokens by itself (arg_utils.py), and
    it refuses fewer tokens than requests (config/scheduler.py)."""
    config = compose(["recipe=deepseek-r1-vllm", "cluster.gpus_per_node=8"])
    for worker in plan(config).workers:
        told = options(shard_command(config, worker, 0))
        usual = "256" if told["--all2all-backend"] == "deepep_low_latency" else "8192"
        steps = told.get("--max-num-batched-tokens", usual)
        assert int(steps) >= int(told["--max-num-seqs"]), worker


def test_sglang_recipe_attention_ranks_share_step_tokens() -> None:
    """0.5.23 divides --chunked-prefill-size by --attn-dp-size (arg_groups/parallel_hook.py)."""
    config = compose(["recipe=deepseek-r1-sglang", "cluster.gpus_per_node=8"])
    told = options(shard_command(config, plan(config).workers[0], 0))
    assert int(told["--chunked-prefill-size"]) // int(told["--attn-dp-size"]) == 16384
