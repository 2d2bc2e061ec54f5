"""Recipes of conf/recipe/: composition, plan, rendered script and named sources."""

import re
from functools import cache
from pathlib import Path

import pytest

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.conf_folders import conf_dir
from hpc_dynamo.config import Config, Role, with_role_options
from hpc_dynamo.engines import check
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import plan
from tests.support.terminal import Call, printed

FILES = sorted((conf_dir() / "recipe").glob("*.yaml"))
RECIPES = [file.stem for file in FILES]
ENGINES = ("sglang", "trtllm", "vllm")
FEATURES = ("qwen3-8b-ngram-vllm", "qwen3-8b-reasoning-vllm")
CASES = ("deepseek-r1", "llama-70b-2p2d", "llama-8b", "llama-8b-1p1d")

P, D, A = "prefill", "decode", "aggregated"
# On nodes of 8 GPUs: how many, and role, nodes and GPUs of each worker.
LAYOUTS = {
    "deepseek-r1-sglang": (8, [(P, 4, 32), (D, 4, 32)]),
    "deepseek-r1-trtllm": (5, [(P, 1, 4)] * 2 + [(D, 4, 32)]),
    "deepseek-r1-vllm": (8, [(P, 2, 16)] * 2 + [(D, 2, 16)] * 2),
    **{f"llama-70b-2p2d-{e}": (4, [(P, 1, 8)] * 2 + [(D, 1, 8)] * 2) for e in ENGINES},
    **{f"llama-8b-{e}": (1, [(A, 1, 1)] * 8) for e in ENGINES},
    **{feature: (1, [(A, 1, 1)] * 8) for feature in FEATURES},
    **{f"llama-8b-1p1d-{e}": (1, [(P, 1, 1), (D, 1, 1)]) for e in ENGINES},
}


@cache
def config(recipe: str, *words: str) -> Config:
    return compose([f"recipe={recipe}", "cluster.gpus_per_node=8", *words])


def laid_out(made: Config) -> tuple[int, list[tuple[str, int, int]]]:
    layout = plan(made)
    gpus = [sum(len(shard.gpus) for shard in w.shards) for w in layout.workers]
    workers = zip(layout.workers, gpus, strict=True)
    return layout.nodes, [(str(w.role), len(w.shards), size) for w, size in workers]


def test_there_is_one_for_every_case_and_engine() -> None:
    cases = [f"{case}-{engine}" for case in CASES for engine in ENGINES]
    assert sorted(RECIPES) == sorted([*cases, *FEATURES])


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_layout_on_nodes_of_eight(recipe: str) -> None:
    made = config(recipe)
    assert made.engine.name == recipe.rpartition("-")[2]
    assert laid_out(made) == LAYOUTS[recipe]


def test_wide_expert_parallelism_on_nodes_of_four() -> None:
    made = config("deepseek-r1-trtllm", "cluster.gpus_per_node=4")
    assert laid_out(made) == (10, [(P, 1, 4), (P, 1, 4), (D, 8, 32)])


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_script_asks_for_these_nodes_and_runs_the_recipe(recipe: str, call: Call) -> None:
    words = (f"recipe={recipe}", "cluster.gpus_per_node=8")
    script = printed(call("plan", "--sbatch", "--verb", "serve", *words))
    assert f"#SBATCH --nodes={LAYOUTS[recipe][0]}\n" in script
    assert "#SBATCH --gpus-per-node=8\n" in script
    assert "exec hpc-dynamo \\\n  serve \\\n  " + " \\\n  ".join(words) in script


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_engine_takes_it(recipe: str) -> None:
    made = config(recipe)
    check(made, plan(made))


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_commands_are_shown_without_the_key(recipe: str, call: Call) -> None:
    shown = printed(call("plan", "--commands", f"recipe={recipe}", "cluster.gpus_per_node=8"))
    nodes, workers = LAYOUTS[recipe]
    heads = [line for line in shown.splitlines() if line.startswith("# worker ")]
    named = [re.match(r"# worker (\d+), (\w+), on ", head) for head in heads]
    world = recipe.endswith("-trtllm")  # one command, for all ranks
    parts = [(r, w[0]) for r, w in enumerate(workers) for _ in range(1 if world else w[1])]
    assert [(int(found[1]), found[2]) for found in named if found] == parts
    assert {*re.findall(r"<node-(\d+)>", " ".join(heads))} == {*map(str, range(nodes))}
    assert shown.count("--host <node-") == shown.count("--port <port-0>") == len(parts)
    keyed = {line.strip() for line in shown.splitlines() if "KEY=" in line}
    assert keyed <= {"VLLM_API_KEY=<key> \\", "HPC_DYNAMO_ENGINE_KEY=<key> \\"}


@pytest.mark.parametrize("file", FILES, ids=RECIPES)
def test_it_names_its_sources_and_what_was_not_run(file: Path) -> None:
    said = " ".join(line[2:] for line in file.read_text().splitlines() if line.startswith("# "))
    sources, not_run = said.index("Sources: "), said.index("Not run on ")
    assert sources < not_run
    named = re.findall(r"[\w./{},-]+/[\w.{},-]+\.(?:ya?ml|md|sh|slurm)", said[sources:not_run])
    assert named, "no file of a public guide"


@pytest.mark.parametrize("file", FILES, ids=RECIPES)
def test_the_page_compares_it_with_its_sources(file: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/guides/recipes.md").read_text()
    assert f"`{file.stem}`" in page
    sources = re.findall(r"[\w-]+\.(?:yaml|md|sh|slurm)\b(?!\.\w)", file.read_text())
    assert [name for name in sources if name not in page] == []


def test_the_words_of_a_person_win() -> None:
    words = (
        *("model.path=/shared/r1", "topology.decode.workers=3", "router=kv"),
        *("engine.args.page-size=32", "engine.decode.args.mem-fraction-static=0.7"),
        "engine.env.NCCL_SOCKET_IFNAME=ib0",
    )
    made = config("deepseek-r1-sglang", *words)
    decode = with_role_options(made, Role.decode).engine
    assert (made.model.path, made.topology.decode.workers) == ("/shared/r1", 3)
    assert (decode.args["page-size"], decode.args["mem-fraction-static"]) == (32, 0.7)
    assert with_role_options(made, Role.prefill).engine.args["mem-fraction-static"] == 0.85
    assert (made.router.policy, decode.env) == ("kv", {"NCCL_SOCKET_IFNAME": "ib0"})


def test_group_that_a_recipe_selects_can_be_overridden() -> None:
    made = config("llama-70b-2p2d-vllm", "engine=simulator")
    assert made.engine.name == "simulator"
    assert made.topology.prefill.tensor_parallel == 8


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as wrong:
        compose(["recipe=llama-70b-2p2d-vlm"])
    assert "did you mean 'llama-70b-2p2d-vllm'?" in wrong.value.hint


UNEVEN = [
    # Six stages on nodes of four, and a decode worker of one GPU.
    (["topology.prefill.pipeline_parallel=6"], {P: (2, 6), D: (1, 1)}),
    # Data-parallel replicas over tensor-parallel groups, and one tensor-parallel group.
    (
        [
            *("topology.prefill.tensor_parallel=4", "topology.prefill.data_parallel=4"),
            "topology.decode.tensor_parallel=16",
        ],
        {P: (4, 16), D: (4, 16)},
    ),
    (
        ["topology.prefill.tensor_parallel=2", "topology.decode.data_parallel=8"],
        {P: (1, 2), D: (2, 8)},
    ),
]


@pytest.mark.parametrize(("words", "sizes"), UNEVEN)
def test_uneven_layouts(words: list[str], sizes: dict[str, tuple[int, int]], call: Call) -> None:
    """Nodes and GPUs of each worker; no GPU twice; the script asks for as many nodes."""
    made = compose(["cluster.gpus_per_node=4", *words])
    _, workers = laid_out(made)
    assert {role: (nodes, gpus) for role, nodes, gpus in workers} == sizes
    layout = plan(made)
    used = [(s.node, gpu) for w in layout.workers for s in w.shards for gpu in s.gpus]
    assert len(used) == len({*used})
    script = printed(call("plan", "--sbatch", "cluster.gpus_per_node=4", *words))
    assert f"#SBATCH --nodes={layout.nodes}\n" in script
