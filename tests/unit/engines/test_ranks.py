"""Data-parallel ranks by engine, and what is reported if a request cannot name one."""

from typing import Any

import pytest

from hpc_dynamo.config import (
    Config,
    Engine,
    Model,
    ParallelSizes,
    Policy,
    Pool,
    Role,
    Router,
    Topology,
    TopologyKind,
)
from hpc_dynamo.engines import EventEndpoints, Placement, engine, rank_notes
from hpc_dynamo.engines.metrics import parse_metrics
from hpc_dynamo.engines.vllm.adapter import VLLM_METRICS
from hpc_dynamo.messages import ONE_CACHE, PrefixCaches
from hpc_dynamo.topology import Shard, Worker


@pytest.mark.parametrize(
    ("name", "args", "data", "expected"),
    [
        ("vllm", {}, 1, ONE_CACHE),
        ("vllm", {}, 4, PrefixCaches(4)),
        ("sglang", {}, 2, PrefixCaches(2)),
        ("sglang", {"attn-dp-size": 8}, 1, PrefixCaches(8)),
        ("sglang", {"attention_data_parallel_size": "8"}, 1, PrefixCaches(8)),
        ("trtllm", {}, 1, ONE_CACHE),
        ("trtllm", {}, 4, PrefixCaches(4, steered=False)),
        ("simulator", {}, 16, PrefixCaches(16)),
        ("simulator", {"pd-protocol": "trtllm"}, 16, PrefixCaches(16, steered=False)),
    ],
)
def test_prefix_caches(name: str, args: dict[str, Any], data: int, expected: PrefixCaches) -> None:
    own = Engine(name=name, args=args)
    sizes = ParallelSizes(data=data)
    assert engine(name).prefix_caches(own, Role.aggregated, sizes) == expected
    assert engine(name).prefix_caches(own, Role.prefill, sizes) == expected


def config(name: str, policy: Policy = Policy.kv) -> Config:
    prefill, decode = Pool(workers=1, data_parallel=4), Pool(workers=1)
    return Config(
        engine=Engine(name=name),
        model=Model(path="/m"),
        router=Router(policy=policy),
        topology=Topology(kind=TopologyKind.disaggregated, prefill=prefill, decode=decode),
    )


def test_ranks_that_cannot_be_steered_are_reported() -> None:
    (note,) = rank_notes(config("trtllm"))
    assert note == (
        "topology.prefill: trtllm itself selects one of 4 data-parallel ranks for a request, each "
        "with its own prefix cache; the router counts 1/4 of a cached prefix"
    )
    assert not [*rank_notes(config("vllm"))]
    assert not [*rank_notes(config("trtllm", Policy.least_loaded))]


def test_metrics_of_ranks_are_added_but_the_share_of_the_cache_is_a_mean() -> None:
    lines = [
        f'vllm:{name}{{engine="{rank}"}} {value}'
        for rank, value in ((0, 0.5), (1, 0.25))
        for name in ("kv_cache_usage_perc", "num_requests_running")
    ]
    found = parse_metrics("\n".join(lines) + "\n", VLLM_METRICS)
    assert (found.kv_usage, found.running) == (0.375, 0.75)


SHARE = [
    ("vllm", "--max-num-seqs", {}, "3"),
    ("sglang", "--max-running-requests", {}, "3"),
    ("sglang", "--max-running-requests", {"attn-dp-size": 4}, "3"),  # SGLang divides it again
    ("trtllm", "--max_batch_size", {}, "3"),
    ("simulator", "--max-num-seqs", {}, "3"),
    ("vllm", "--max-num-seqs", {"max-num-seqs": 7}, "7"),
]


@pytest.mark.parametrize(("name", "option", "args", "share"), SHARE)
def test_ranks_share_the_sequences_of_a_worker(
    name: str, option: str, args: dict[str, Any], share: str
) -> None:
    own = Config(engine=Engine(name=name, args=args, max_num_seqs=10), model=Model(path="/m"))
    worker = Worker(0, Role.aggregated, (Shard(0, ()),), parallel=ParallelSizes(data=4))
    command = engine(name).command(own, Placement(worker, "10.0.0.7", (1, 2), (), "token"))
    assert command.argv[command.argv.index(option) + 1] == share


def test_endpoints_of_ranks_follow_those_of_rank_0() -> None:
    """As vLLM and SGLang derive them."""
    tcp = EventEndpoints("tcp://n0:5557", "tcp://[::1]:5600", (0, 1)).by_rank()
    assert tcp[1] == EventEndpoints("tcp://n0:5558", "tcp://[::1]:5601")
    assert tcp[0] == EventEndpoints("tcp://n0:5557", "tcp://[::1]:5600")
    ipc = EventEndpoints("ipc:///f/inproc", "ipc:///f/inproc-r", (0, 1)).by_rank()
    assert ipc[1] == EventEndpoints("ipc:///f/inproc_dp1", "ipc:///f/inproc-r_dp1")
