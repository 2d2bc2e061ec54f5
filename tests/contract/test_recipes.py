"""Every option of every recipe is one that its engine knows, on each node of each worker."""

from collections.abc import Callable

import pytest

from hpc_dynamo.cli.commands import parts, started
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.engines import Command
from hpc_dynamo.topology import plan
from tests.contract import test_sglang, test_trtllm, test_vllm
from tests.test_recipes import RECIPES

# What an engine would refuse of a command.
REFUSES: dict[str, Callable[[Command], list[str]]] = {
    "sglang": lambda made: test_sglang.wrong(list(made.argv[3:])),
    "trtllm": test_trtllm.unknown,
    "vllm": lambda made: test_vllm.wrong(list(made.argv[3:])),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_engine_knows_every_option(recipe: str) -> None:
    config = compose([f"recipe={recipe}", "cluster.gpus_per_node=8"])
    for worker in plan(config).workers:
        for part in parts(config, worker):
            made = started(config, worker, part)
            assert REFUSES[config.engine.name](made) == [], (worker, part)
