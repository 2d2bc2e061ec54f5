"""Command line and options file of a TensorRT-LLM worker, from the topology and its placement.

Source: TensorRT-LLM 1.3 and 1.4, tensorrt_llm/commands/serve.py (the command), llmapi/llm_args.py
(the options file) and llmapi/trtllm-llmapi-launch (ranks over nodes).
"""

import json
from collections.abc import Mapping
from typing import Any

from hpc_dynamo.config import Config, Engine, Role
from hpc_dynamo.config.merge import merge_options, parse_json
from hpc_dynamo.engines.adapter import EngineCommand, Placement
from hpc_dynamo.engines.contract import long_names, plain_name, version_key
from hpc_dynamo.engines.environment import device_environment, python_executable
from hpc_dynamo.engines.options import sequences_per_rank
from hpc_dynamo.engines.trtllm.signature import KEY_FIELD, signing_key

# A prefill worker frees blocks that were not pulled within this time; by default never.
KV_TRANSFER_TIMEOUT_MS = 300_000

SIGNED_VERSION = (1, 4)  # first version with these options and fields

# Options that this module computes. Fields of the options file override the command line.
CONTROLLED_OPTIONS = {
    "model": "model.path",
    "host": "serve.host",
    "port": "serve.port",
    "tp_size": "topology.{role}.tensor_parallel",
    "pp_size": "topology.{role}.pipeline_parallel",
    "gpus_per_node": "",
    "served_model_name": "model.name",
}

# Starts the ranks of a world over several nodes. Rank 0 also runs the server.
LAUNCHER = "trtllm-llmapi-launch"


def server_command(config: Config, placement: Placement) -> EngineCommand:
    """Return the command of one worker; of a multi-node worker that of each MPI rank.

    Options of the user override the generated ones; `engine.args.extra` is merged into the options
    file.
    """
    worker = placement.worker
    sizes, args = worker.parallel, click_options(config.engine)
    extra = args.pop("extra", None) or {}
    name = f"worker-{worker.rank}.yaml"
    options: dict[str, Any] = {
        "host": placement.address,
        "port": placement.ports[0],
        "backend": "pytorch",
        "tp_size": sizes.tensor * sizes.data,
        "pp_size": sizes.pipeline,
        "max_batch_size": sequences_per_rank(config.engine, sizes.data),
        "extra_llm_api_options": f"{placement.log_folder}/{name}",
    }
    if signs_handoffs(config.engine):
        options["served_model_name"] = config.model.served_name
    launcher: tuple[str, ...] = ()
    if len(worker.shards) > 1:
        options["gpus_per_node"] = len(worker.shards[0].gpus)
        # The launcher is next to the interpreter, or on PATH if that has no folder.
        folder, slash, _ = python_executable(config.engine).rpartition("/")
        launcher = (f"{folder}{slash}{LAUNCHER}",)
    # Started as a module: in containers the script trtllm-serve is not next to the interpreter.
    serve = ("-m", "tensorrt_llm.commands.serve", "serve", config.model.path)
    env = {"TRTLLM_NO_USAGE_STATS": "1", **device_environment(config.engine, placement)}
    fields = merge_options(_llm_args(config.engine, placement), extra)
    text = json.dumps(fields, indent=1)  # JSON is YAML
    argv = (*launcher, python_executable(config.engine), *serve, *_click_flags(options | args))
    return EngineCommand(argv, env | config.engine.env, {name: text + "\n"})


def click_options(engine: Engine) -> dict[str, Any]:
    """Return `engine.args` by the names of trtllm-serve's command line, with underscores."""
    args = {name.replace("-", "_"): value for name, value in engine.args.items()}
    return args | ({"extra": parse_json(args["extra"])} if "extra" in args else {})


def signs_handoffs(engine: Engine) -> bool:
    """Return True for the options and fields of 1.4, which older versions refuse."""
    key = version_key(engine.version)
    return not key or key >= SIGNED_VERSION


def _llm_args(engine: Engine, placement: Placement) -> dict[str, Any]:
    """Return fields of llm_args.TorchLlmArgs that have no option on the command line, and those
    that the server removes from the file."""
    fields: dict[str, Any] = {"return_perf_metrics": True, "enable_iter_perf_stats": True}
    worker = placement.worker
    role = worker.role
    if worker.parallel.data > 1:
        fields["enable_attention_dp"] = True
    if host_cache := int(engine.kv_host_cache_gb * 2**30):  # bytes for each GPU
        fields["kv_cache_config"] = {"host_cache_size": host_cache}
    if role is not Role.aggregated:
        timeout = {"kv_transfer_timeout_ms": KV_TRANSFER_TIMEOUT_MS}
        fields["cache_transceiver_config"] = {"backend": "NIXL", **timeout}
        if signs_handoffs(engine):
            fields[KEY_FIELD] = signing_key(placement.token)
    if role is Role.prefill:
        fields["disable_overlap_scheduler"] = True  # as documented for context servers
    return fields


def _click_flags(args: Mapping[str, Any]) -> list[str]:
    """Return arguments as click reads them: names as its options are spelled, False omits a flag,
    a list repeats its option."""
    out = list[str]()
    spellings = long_names("trtllm")
    for name, value in args.items():
        option = spellings.get(plain_name(name), f"--{name}")
        match value:
            case None | False:
                continue
            case True:
                out.append(option)
            case list() | tuple():
                out += [word for each in value for word in (option, str(each))]
            case Mapping():
                out += [option, json.dumps(value)]
            case _:
                out += [option, str(value)]
    return out
