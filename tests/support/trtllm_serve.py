"""Fake of tensorrt_llm/commands/serve.py for machines without a GPU.

It reads the command line and the file like TensorRT-LLM and becomes a simulator with its protocol.

A test copies this file to where `python -m tensorrt_llm.commands.serve` finds it.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def role(fields: dict[str, Any]) -> str:
    """Return the role of the simulator. TensorRT-LLM's workers have no role of their own."""
    if "cache_transceiver_config" not in fields:
        return "aggregated"
    return "prefill" if fields.get("disable_overlap_scheduler") else "decode"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    for name in ("host", "port", "backend", "extra_llm_api_options", "served_model_name"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("tp_size", "pp_size", "max_batch_size", "max_num_tokens"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    fields = json.loads(Path(args.extra_llm_api_options).read_text())
    print(f"serving with {fields}, {args.max_num_tokens} tokens a step", flush=True)
    options = {
        "model": args.served_model_name,
        "internal-request-auth-key": fields.get("internal_request_auth_key", ""),
        "host": args.host,
        "port": args.port,
        "role": role(fields),
        "pd-protocol": "trtllm",
        "max-num-seqs": str(args.max_batch_size),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    os.execv(sys.executable, [sys.executable, "-m", "hpc_dynamo.simulator", *words])


if __name__ == "__main__":
    main()
