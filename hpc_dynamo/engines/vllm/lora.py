"""vLLM's options for the LoRA adapters of `model.lora`, which are loaded at the start.

Source: vLLM 0.32, entrypoints/launchers/cli_args.py (LoRAParserAction), config/lora.py.
"""

import json
from pathlib import Path
from typing import Any

import msgspec

from hpc_dynamo.config import Model
from hpc_dynamo.regular_file import MAX_RECORD_BYTES, read_regular_file

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of --max-lora-rank
MAX_ACTIVE = 8  # adapters in one batch; each occupies device memory

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's


def vllm_options(model: Model) -> dict[str, Any]:
    """Return vLLM's options for the adapters; empty without adapters.

    All adapters stay in host memory, so that no request waits for the disk. The maximum rank is
    that of the largest adapter; vLLM's default applies if no adapter's configuration can be read
    here.
    """
    adapters = model.lora
    if not adapters:
        return {}
    base = model.served_name
    modules = [{"name": n, "path": p, "base_model_name": base} for n, p in adapters.items()]
    options: dict[str, Any] = {
        "enable-lora": True,
        "lora-modules": [json.dumps(module) for module in modules],
        "max-loras": min(len(adapters), MAX_ACTIVE),
    }
    if len(adapters) > MAX_ACTIVE:
        options["max-cpu-loras"] = len(adapters)  # default: max-loras
    rank = max(map(adapter_rank, adapters.values()))
    return options | ({"max-lora-rank": next(r for r in VLLM_RANKS if r >= rank)} if rank else {})


def adapter_rank(path: str) -> int:
    """Return the largest rank of an adapter's layers; 0 if it cannot be read or vLLM refuses it."""
    try:
        adapter = msgspec.json.decode(
            read_regular_file(Path(path) / ADAPTER_CONFIG, MAX_RECORD_BYTES), type=_AdapterConfig
        )
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    rank = max(adapter.r, *adapter.rank_pattern.values(), 0)
    return rank if rank <= VLLM_RANKS[-1] else 0


class _AdapterConfig(msgspec.Struct):
    """Ranks in PEFT's adapter_config.json."""

    r: int
    rank_pattern: dict[str, int] = {}  # ranks of layers that differ
