"""Workers of SGLang that change their role while they run, and the request for it."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from hpc_dynamo.config import Config, Device, Engine, Planner, PlannerMode, Pool, Role
from hpc_dynamo.config.schema.engine import RoleOptions
from hpc_dynamo.engines import engine
from hpc_dynamo.engines.sglang.role_switch import SglangRoleSwitch
from tests.unit.engines.test_engines import options
from tests.unit.engines.test_sglang import CONFIG, SPLIT, place

BACKEND = {"disaggregation-transfer-backend": "mooncake"}
PLANNED = replace(CONFIG, planner=Planner(mode=PlannerMode.load))
SWITCH = "--enable-pd-role-switch"
PORT = "--disaggregation-bootstrap-port"


def using(args: dict[str, Any], config: Config = PLANNED) -> Config:
    return replace(config, engine=replace(CONFIG.engine, args=args))


def commands(config: Config) -> list[dict[str, str]]:
    """Return the options of a prefill and of a decode worker."""
    return [
        options(engine("sglang").command(config, place(r))) for r in (Role.prefill, Role.decode)
    ]


@pytest.mark.parametrize(
    "args",
    [
        BACKEND,
        {"disaggregation_transfer_backend": "mori"},
        {"enable_pd_role_switch": True},
    ],
    ids=["mooncake", "mori", "forced"],
)
def test_workers_that_switch_their_role_have_equal_options(args: dict[str, Any]) -> None:
    config = using(args)
    assert engine("sglang").role_switch(config) is not None
    prefill, decode = commands(config)
    assert SWITCH in prefill
    assert prefill[PORT] == decode[PORT] == "5001", "all run a bootstrap server"
    mode = "--disaggregation-mode"
    assert prefill | {mode: "decode"} == decode


def test_cpu_workers_that_switch_their_role_have_equal_options() -> None:
    on_cpu = replace(PLANNED, engine=Engine(name="sglang", device=Device.cpu, args=BACKEND))
    prefill, decode = commands(on_cpu)
    assert prefill | {"--disaggregation-mode": "decode"} == decode


RESTARTS = replace(PLANNED, planner=Planner(PlannerMode.load, restart_on_role_change=True))
STAGED = replace(SPLIT, prefill=Pool(workers=1, pipeline_parallel=2))
OWN = RoleOptions(args={"chunked-prefill-size": 1024})


@pytest.mark.parametrize(
    "config",
    [
        PLANNED,
        using(BACKEND, CONFIG),
        using(BACKEND, RESTARTS),
        using(BACKEND | {"enable-pd-role-switch": False}),
        using(BACKEND | {"ep-size": 2}),
        using(BACKEND | {"speculative_algorithm": "EAGLE"}),
        using(BACKEND | {"moe-a2a-backend": "deepep"}),
        using(BACKEND, replace(PLANNED, topology=STAGED)),
        replace(PLANNED, engine=replace(CONFIG.engine, args=BACKEND, prefill=OWN)),
    ],
    ids=[
        *("nixl", "no planner", "restarts wanted", "disabled", "experts", "speculative"),
        *("all-to-all", "stages", "options of one role"),
    ],
)
def test_other_workers_are_restarted_for_a_role_change(config: Config) -> None:
    assert engine("sglang").role_switch(config) is None
    prefill, decode = commands(config)
    assert SWITCH not in prefill.keys() | decode.keys()
    assert PORT in prefill
    assert PORT not in decode


def test_other_engines_offer_no_role_switch() -> None:
    for name in ("vllm", "trtllm", "simulator"):
        assert engine(name).role_switch(replace(PLANNED, engine=Engine(name=name))) is None


def test_simulated_sglang_offers_role_switch_if_asked() -> None:
    args = {"pd-protocol": "sglang", "enable-pd-role-switch": True}
    config = replace(PLANNED, engine=Engine(name="simulator", args=args))
    assert engine("simulator").role_switch(config) is not None
    given = options(engine("simulator").command(config, place(Role.decode)))
    assert (SWITCH in given, given[PORT]) == (True, "5001")


@pytest.mark.parametrize(
    ("states", "graphs"),
    [
        (None, {"decode_cuda_graph_memory_gb": 0.0}),
        ("?", {"decode_cuda_graph_memory_gb": 0.0}),
        ([{}, None], {"decode_cuda_graph_memory_gb": 0.0}),
        (
            [{"decode_cuda_graph_bs": [], "decode_cuda_graph_memory_gb": 0.0}],
            {"decode_cuda_graph_memory_gb": 0.0},
        ),
        (
            [
                {"decode_cuda_graph_bs": [1, 2], "decode_cuda_graph_memory_gb": 0.5},
                {"decode_cuda_graph_bs": [1, 2], "decode_cuda_graph_memory_gb": 0.75},
            ],
            {"decode_cuda_graph_bs": [1, 2], "decode_cuda_graph_memory_gb": 0.75},
        ),
    ],
)
def test_new_decode_worker_captures_graphs_of_its_peer(
    states: object, graphs: dict[str, Any]
) -> None:
    peer = {"internal_states": msgspec.Raw(msgspec.json.encode(states))}
    assert SglangRoleSwitch().body(Role.decode, peer) == {"new_role": "decode", **graphs}
    assert SglangRoleSwitch().body(Role.prefill, peer) == {"new_role": "prefill"}
