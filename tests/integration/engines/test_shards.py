"""Workers over several nodes: the command of each shard, and rejected settings."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpc_dynamo.config import (
    Cluster,
    Config,
    Container,
    ContainerKind,
    Engine,
    Model,
    Pool,
    Role,
    Router,
    Topology,
    TopologyKind,
)
from hpc_dynamo.engines import EngineCommand, Placement, ShardRendezvous, engine
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.launch import mpi_rank, mpi_step
from hpc_dynamo.topology import Worker, plan
from tests.support.runs import hpc_dynamo, write_prompts
from tests.unit.engines.test_engines import options

GPUS = 4  # per node
MET = ShardRendezvous("10.0.0.5", (6000, 6001))


def config(name: str, pool: Pool, **args: object) -> Config:
    return Config(
        engine=Engine(name=name, args=args),
        model=Model(path="/llama"),
        topology=Topology(aggregated=pool),
        router=Router(kv_events=False),
        cluster=Cluster(gpus_per_node=GPUS),
    )


def command(given: Config, part: int) -> EngineCommand:
    """Return the placement of one shard of the first worker."""
    engine(given.engine.name).check(given, plan(given))
    return engine(given.engine.name).command(given, place(plan(given).workers[0], part))


def place(worker: Worker, part: int) -> Placement:
    address = f"10.0.0.{5 + part}"
    return Placement(
        worker,
        address,
        (5000, 5001),
        ("0",),
        "t",
        shard_index=part,
        rendezvous=MET,
        interface="ib0",
    )


def parts(given: Config, *names: str) -> list[tuple[str | None, ...]]:
    """Return these options of each shard; None if it has none of them."""
    count = len(plan(given).workers[0].shards)
    told = [options(command(given, part)) for part in range(count)]
    return [tuple(each.get(f"--{name}") for name in names) for each in told]


NODES = ("nnodes", "node-rank", "master-addr", "master-port", "headless")


def test_vllm_replica_over_nodes_gets_node_options() -> None:
    for pool in (Pool(1, tensor_parallel=8), Pool(1, pipeline_parallel=6), Pool(1, 4, 2)):
        given = config("vllm", pool)
        assert parts(given, *NODES, "distributed-executor-backend") == [
            ("2", "0", "10.0.0.5", "6000", None, "mp"),
            ("2", "1", "10.0.0.5", "6000", "", "mp"),
        ]
    first, second = (command(config("vllm", Pool(1, 8)), part) for part in (0, 1))
    assert first.argv[2] == "vllm.entrypoints.openai.api_server"
    assert second.argv[2] == "hpc_dynamo_vllm"


RANKS = ("size-local", "start-rank", "address", "rpc-port")


def test_vllm_whole_replicas_are_ranks_of_one_server() -> None:
    given = config("vllm", Pool(1, tensor_parallel=2, data_parallel=3))
    names = ("data-parallel-size", *(f"data-parallel-{name}" for name in RANKS))
    assert parts(given, *names, "headless", "nnodes") == [
        ("3", "2", None, "10.0.0.5", "6001", None, None),
        ("3", "1", "2", "10.0.0.5", "6001", "", None),
    ]


def test_vllm_multi_node_replicas_need_expert_parallel() -> None:
    pool = Pool(1, tensor_parallel=8, data_parallel=2)
    dense = config("vllm", pool)
    with pytest.raises(ConfigError, match="vLLM cannot do this with a dense model") as refused:
        engine("vllm").check(dense, plan(dense))
    assert "topology.aggregated.workers=2" in refused.value.hint
    assert "engine.args.enable-expert-parallel=true" in refused.value.hint
    experts = config("vllm", pool, **{"enable-expert-parallel": True})
    told = parts(experts, "nnodes", "node-rank", "data-parallel-size", "data-parallel-rpc-port")
    assert told == [("4", str(part), "2", "6001") for part in range(4)]


def test_vllm_replicas_sharing_a_node_are_rejected() -> None:
    args = {"enable-expert-parallel": True}
    given = config("vllm", Pool(1, pipeline_parallel=6, data_parallel=2), **args)
    with pytest.raises(ConfigError, match="one node would hold shards of two replicas"):
        engine("vllm").check(given, plan(given))


def test_sglang_shards_share_rendezvous_address() -> None:
    given = config("sglang", Pool(1, tensor_parallel=8))
    told = parts(given, "nnodes", "node-rank", "dist-init-addr")
    assert told == [("2", str(part), "10.0.0.5:6000") for part in (0, 1)]


def test_sglang_prefill_shards_name_first_bootstrap_server() -> None:
    pool = Pool(1, tensor_parallel=8)
    topology = Topology(kind=TopologyKind.disaggregated, prefill=pool, decode=pool)
    given = replace(config("sglang", pool), topology=topology)
    worker = replace(plan(config("sglang", pool)).workers[0], role=Role.prefill)
    told = [engine("sglang").command(given, place(worker, part)) for part in (0, 1)]
    assert [options(each)["--disaggregation-bootstrap-port"] for each in told] == ["6001", "6001"]


def test_sglang_replicas_over_nodes_are_rejected() -> None:
    given = config("sglang", Pool(1, tensor_parallel=4, data_parallel=2))
    with pytest.raises(ConfigError, match="SGLang keeps its replicas on one") as refused:
        engine("sglang").check(given, plan(given))
    assert "topology.aggregated.workers=2" in refused.value.hint
    assert "tensor_parallel=8 with engine.args.attn-dp-size" in refused.value.hint


def test_simulator_shards_get_node_options() -> None:
    told = parts(config("simulator", Pool(1, pipeline_parallel=6)), *NODES)
    assert told == [("2", str(part), "10.0.0.5", "6000", None) for part in (0, 1)]


@pytest.mark.parametrize("name", ["vllm", "sglang", "simulator", "trtllm"])
def test_unequal_shards_are_rejected(name: str) -> None:
    given = config(name, Pool(1, pipeline_parallel=7))
    with pytest.raises(ConfigError, match=r"7 GPUs per worker are \[4, 3\] on 2 nodes") as refused:
        engine(name).check(given, plan(given))
    assert "whose product is a multiple of 2" in refused.value.hint


# One MPI world


def test_trtllm_ranks_use_launcher_next_to_interpreter() -> None:
    given = config("trtllm", Pool(1, pipeline_parallel=6))
    given = replace(given, engine=replace(given.engine, python="/env/bin/python"))
    assert engine("trtllm").is_mpi_step(given.engine, plan(given).workers[0])
    made = command(given, 0)
    assert made.argv[:2] == ("/env/bin/trtllm-llmapi-launch", "/env/bin/python")
    assert made.argv[2:6] == ("-m", "tensorrt_llm.commands.serve", "serve", "/llama")
    words = dict(zip(made.argv[6::2], made.argv[7::2], strict=True))
    assert (words["--pp_size"], words["--gpus_per_node"]) == ("6", "3")
    by_name = replace(given, engine=replace(given.engine, python="python3"))
    assert command(by_name, 0).argv[:2] == ("trtllm-llmapi-launch", "python3")


def test_trtllm_on_one_node_has_no_launcher() -> None:
    given = config("trtllm", Pool(1, tensor_parallel=4))
    assert not engine("trtllm").is_mpi_step(given.engine, plan(given).workers[0])
    assert "trtllm-llmapi-launch" not in " ".join(command(given, 0).argv)


def test_trtllm_launcher_rejects_unquotable_paths() -> None:
    given = config("trtllm", Pool(1, pipeline_parallel=6))
    given = replace(given, model=Model(path="/shared/my model"))
    with pytest.raises(ConfigError, match="splits words at blanks") as refused:
        engine("trtllm").check(given, plan(given))
    assert refused.value.message.startswith("model.path='/shared/my model'")


def test_trtllm_over_nodes_in_enroot_is_rejected() -> None:
    given = config("trtllm", Pool(1, pipeline_parallel=6))
    image = Container(kind=ContainerKind.enroot, image="/i.sqsh")
    given = replace(given, engine=replace(given.engine, container=image))
    with pytest.raises(ConfigError, match="cannot run over several nodes in enroot") as refused:
        engine("trtllm").check(given, plan(given))
    assert "engine.container.kind=pyxis or apptainer" in refused.value.hint


def test_simulator_can_start_as_mpi_step() -> None:
    given = config("simulator", Pool(1, pipeline_parallel=6), start="mpi")
    assert engine("simulator").is_mpi_step(given.engine, plan(given).workers[0])
    told = options(command(given, 0))
    assert told["--mpi"] == ""
    assert (told["--master-addr"], told["--master-port"]) == ("10.0.0.5", "6000")
    assert not {"--nnodes", "--start"} & told.keys()
    unknown = config("simulator", Pool(1), start="ray")
    with pytest.raises(ConfigError, match=r"engine\.args\.start='ray' is not known"):
        engine("simulator").check(unknown, plan(unknown))


def test_mpi_step_without_slurm_is_rejected(tmp_path: Path) -> None:
    words = ("engine=simulator", "engine.device=cuda", "cluster.gpus_per_node=1")
    more = ("topology=aggregated", "topology.aggregated.tensor_parallel=2")
    write_prompts(tmp_path / "prompts.jsonl", 1)
    refused = hpc_dynamo(
        *("batch", *words, *more, "engine.args.start=mpi", "cluster.launcher=local"),
        "input=prompts.jsonl",
        cwd=tmp_path,
    )
    assert refused.returncode == 3
    assert "cluster.launcher=local cannot start MPI ranks over nodes" in refused.stderr


def test_step_environment_has_job_id_and_no_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "7")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    made = mpi_step.step_environment({"CUDA_VISIBLE_DEVICES": "2,3", "A": "1"})
    assert made == {"A": "1", "SLURM_JOB_ID": "7"}


def test_last_message_names_killed_rank() -> None:
    said = "1: EngineError: node 0 is gone\n"
    others = "srun: error: n1: tasks 0-1: Exited with exit code 1\n"
    killed = "srun: error: n2: task 2: Killed\n"
    noise = "srun: Force Terminated StepId=2.1\n\n"
    assert mpi_step.last_message(said + others + killed + others + noise) == killed.strip()
    assert mpi_step.last_message(said + others + noise) == said.strip()
    assert mpi_step.last_message("srun: error: no such node\n") == "srun: error: no such node"
    assert mpi_step.last_message("") == ""


PRINT = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.mark.parametrize(
    ("node", "given", "seen"),
    [
        ("0", "4,5,6,7", "4,5"),
        ("1", "0,1,2,3", "2,3"),
        ("1", "GPU-a,GPU-b,GPU-c,GPU-d", "GPU-c,GPU-d"),
        ("0", "", "0,1"),
    ],
)
def test_rank_sees_gpus_of_its_worker(node: str, given: str, seen: str) -> None:
    env = {"SLURM_NODEID": node, "CUDA_VISIBLE_DEVICES": given, "PMIX_RANK": "3", "PATH": "/bin"}
    argv = (sys.executable, "-I", "-S", mpi_rank.__file__, "0,1/2,3", sys.executable, "-c", PRINT)
    told = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    assert found["CUDA_VISIBLE_DEVICES"] == found["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == seen
    assert found["APPTAINERENV_PMIX_RANK"] == "3"
    assert found["PATH"] == f"{Path(sys.executable).parent}:/bin"


def test_single_task_gets_no_rank_variables() -> None:
    env = {"SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "1", "PMI_RANK": "0", "A": "SLURM_"}
    argv = (sys.executable, "-I", "-S", mpi_rank.__file__, "", sys.executable, "-c", PRINT)
    told = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    found = json.loads(told.stdout)
    assert (found["CUDA_VISIBLE_DEVICES"], found["A"]) == ("", "SLURM_")
    assert not [name for name in found if "SLURM_" in name or "PMI_" in name]


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_shards_use_interface_of_job_network(name: str) -> None:
    own = {"vllm": "VLLM_HOST_IP", "sglang": "SGLANG_HOST_IP"}[name]
    env = command(config(name, Pool(1, tensor_parallel=8)), 1).env
    assert (env["GLOO_SOCKET_IFNAME"], env["NCCL_SOCKET_IFNAME"]) == ("ib0", "=ib0")
    assert env[own] == "10.0.0.6"
    given = config(name, Pool(1, tensor_parallel=8))
    mine = replace(given, engine=replace(given.engine, env={"NCCL_SOCKET_IFNAME": "hsn"}))
    assert command(mine, 1).env["NCCL_SOCKET_IFNAME"] == "hsn"


@pytest.mark.parametrize("name", ["vllm", "sglang", "simulator"])
def test_only_first_shard_publishes_kv_events(name: str) -> None:
    given = replace(config(name, Pool(1, tensor_parallel=8)), router=Router())
    worker = plan(given).workers[0]
    told = [
        engine(name).event_endpoints(given, replace(place(worker, n), events_folder="/tmp/x"))
        for n in (0, 1)
    ]
    assert told[0] is not None
    assert told[1] is None
