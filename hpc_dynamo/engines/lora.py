"""LoRA adapters that engines load at their start, and what requests for them say.

Sources: vLLM 0.32, entrypoints/launchers/cli_args.py (LoRAParserAction), config/lora.py; SGLang
0.5.23, arg_groups/fields/lora.py, entrypoints/openai/serving_base.py (_parse_model_parameter).
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from hpc_dynamo.config import Config

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM makes room for
MAX_ACTIVE = 8  # adapters in one batch: each has its place in the device's memory

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's


def vllm_options(config: Config) -> dict[str, Any]:
    """All adapters stay in the host's memory, so that none is read from disk for a request. The
    room for ranks is that of the largest; of adapters not to be seen from here vLLM's default."""
    adapters = config.model.lora
    if not adapters:
        return {}
    base = config.model.served_name
    told = [{"name": n, "path": p, "base_model_name": base} for n, p in adapters.items()]
    options: dict[str, Any] = {
        "enable-lora": True,
        "lora-modules": [json.dumps(each) for each in told],
        "max-loras": min(len(adapters), MAX_ACTIVE),
    }
    if len(adapters) > MAX_ACTIVE:
        options["max-cpu-loras"] = len(adapters)  # else as many as max-loras, whoever says those
    rank = max(map(adapter_rank, adapters.values()))
    return options | ({"max-lora-rank": next(r for r in VLLM_RANKS if r >= rank)} if rank else {})


def sglang_options(config: Config) -> dict[str, Any]:
    """SGLang reads the ranks itself, and knows by this that there are any."""
    adapters = config.model.lora
    return {"lora-paths": [f"{n}={p}" for n, p in adapters.items()]} if adapters else {}


def adapter_rank(path: str) -> int:
    """The largest of its layers; 0 where the settings cannot be read, or are beyond what vLLM has
    room for: it refuses them in its own words."""
    try:
        told = msgspec.json.decode((Path(path) / ADAPTER_CONFIG).read_bytes(), type=_AdapterConfig)
    except (OSError, msgspec.DecodeError):
        return 0
    rank = max(told.r, *told.rank_pattern.values(), 0)
    return rank if rank <= VLLM_RANKS[-1] else 0


class _AdapterConfig(msgspec.Struct):
    r: int
    rank_pattern: dict[str, int] = {}  # of layers that differ
