"""Commands of SGLang workers are checked against its own definitions, see read_sglang."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from hpc_dynamo.config import (
    Cluster,
    Config,
    Device,
    Engine,
    Model,
    Pool,
    Role,
    Topology,
    TopologyKind,
)
from hpc_dynamo.engines import Placement, ShardRendezvous, engine
from hpc_dynamo.topology import Shard, Worker
from tests.unit.engines.contract.read_sglang import FILE, read

OPTIONS: dict[str, dict[str, Any]] = json.loads(FILE.read_text())["options"]
POOL = Pool(workers=1, tensor_parallel=2, pipeline_parallel=2)
SPLIT = Topology(kind=TopologyKind.disaggregated, prefill=POOL, decode=POOL)
WHOLE = Topology(kind=TopologyKind.aggregated, aggregated=POOL)


def words(role: Role, **args: Any) -> list[str]:
    """Return the options of a worker with KV events, and the key that its entry point adds."""
    config = Config(
        engine=Engine(name="sglang", args=args),
        model=Model(path="/shared/llama"),
        topology=WHOLE if role is Role.aggregated else SPLIT,
        cluster=Cluster(gpus_per_node=4),
    )
    if role is Role.aggregated:
        config = replace(config, engine=replace(config.engine, device=Device.cpu))
    sizes = dict(config.topology.pools)[role].parallel
    worker = Worker(3, role, (Shard(0, (0, 1, 2, 3)),), parallel=sizes)
    place = Placement(worker, "10.0.0.7", (5000, 5001), ("0",), "secret-token", "/tmp/x")
    return told(config, place)


def told(config: Config, place: Placement) -> list[str]:
    return [*engine("sglang").command(config, place).argv[3:], "--api-key", "secret-token"]


def wrong(words: list[str]) -> list[str]:
    """Return the options that SGLang's parser would reject."""
    found, rest = list[str](), list(words)
    while rest:
        option = rest.pop(0)
        known, values = OPTIONS.get(option), list[str]()
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if known is None:
            found.append(f"{option} is not known")
            continue
        if known["flag"] is bool(values):
            found.append(f"{option} is given {values}")
        if known["choices"] and not {*values} <= {*map(str, known["choices"])}:
            found.append(f"{option} may not be {values}")
    return found


@pytest.mark.parametrize("role", Role)
def test_every_sglang_flag_is_known_with_allowed_value(role: Role) -> None:
    assert wrong(words(role)) == []
    assert wrong(words(role, mem_fraction_static=0.8, disable_cuda_graph=False)) == []


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("role", [Role.prefill, Role.decode])
def test_every_flag_of_a_shard_is_known(role: Role, part: int) -> None:
    config = Config(engine=Engine(name="sglang"), model=Model(path="/llama"), topology=SPLIT)
    sizes = dict(config.topology.pools)[role].parallel
    worker = Worker(3, role, (Shard(0, (0, 1)), Shard(1, (0, 1))), parallel=sizes)
    met = ShardRendezvous("10.0.0.6", (6000, 6001))
    place = Placement(
        worker, "10.0.0.7", (5000, 5001), ("0", "1"), "t", shard_index=part, rendezvous=met
    )
    assert wrong(told(config, place)) == []
    assert "--nnodes" in told(config, place)


def test_options_of_adapters_and_sleep_are_known() -> None:
    own, adapters = Engine(name="sglang", sleep_mode=True), {"a": "/a", "b": "/b"}
    config = Config(engine=own, model=Model(path="/llama", lora=adapters), topology=SPLIT)
    worker = Worker(3, Role.decode, (Shard(0, (0, 1, 2, 3)),), parallel=SPLIT.decode.parallel)
    found = told(config, Placement(worker, "10.0.0.7", (5000, 5001), ("0",), "t"))
    assert wrong(found) == []
    assert {"--lora-paths", "--enable-memory-saver", "--enable-weights-cpu-backup"} <= {*found}


def test_contract_check_can_fail() -> None:
    found = wrong(words(Role.decode, max_model_len=9, enable_metrics=3, disaggregation_mode="x"))
    assert sorted(found) == [
        "--disaggregation-mode may not be ['x']",
        "--enable-metrics is given ['3']",
        "--max-model-len is not known",
    ]


def test_sglang_definitions_are_read(tmp_path: Path) -> None:
    wheel, fields = tmp_path / "sglang-1.2.3-py3.whl", "sglang/srt/arg_groups/fields/"
    with ZipFile(wheel, "w") as archive:
        archive.writestr("sglang/srt/arg_groups/choices.py", "BACKENDS = ['nixl', 'fake']\n")
        archive.writestr(
            f"{fields}some.py",
            "class Some:\n"
            "    a_b: A[Optional[int], 'help'] = None\n"
            "    on: A[bool, 'help'] = False\n"
            "    mode: A[Literal['x', 'y'], 'help'] = 'x'\n"
            "    backend: A[str, Arg(help='h', choices=BACKENDS, aliases=['--back'])] = 'nixl'\n"
            "    hidden: A[bool, Arg(no_cli=True)] = False\n",
        )
        plain = "parser.add_argument('--old', action='store_true', help='h')\n"
        archive.writestr("sglang/srt/server_args.py", plain)
    some, backends = f"{fields}some.py", ["nixl", "fake"]
    assert read(wheel) == {
        "version": "1.2.3",
        "options": {
            "--a-b": {"flag": False, "choices": None, "file": some},
            "--back": {"flag": False, "choices": backends, "file": some},
            "--backend": {"flag": False, "choices": backends, "file": some},
            "--mode": {"flag": False, "choices": ["x", "y"], "file": some},
            "--old": {"flag": True, "choices": None, "file": "sglang/srt/server_args.py"},
            "--on": {"flag": True, "choices": None, "file": some},
        },
    }
