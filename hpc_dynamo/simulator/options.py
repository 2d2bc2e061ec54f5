"""The command line, and which sizes go together."""

import argparse
import os

from hpc_dynamo.errors import ConfigError
from hpc_dynamo.simulator.blocks import DIGEST_BYTES
from hpc_dynamo.timing_model import PROFILES

KEY_VARIABLE = "HPC_DYNAMO_ENGINE_KEY"

WORLD = ("SLURM_NTASKS", "SLURM_PROCID")

EPILOG = f"""\
examples:
  python -m hpc_dynamo.simulator --model demo --port 8000
  python -m hpc_dynamo.simulator --model demo --port 8001 --role prefill
  python -m hpc_dynamo.simulator --model demo --port 8002 --role decode --time-scale 0.1

Answers are random words, chosen by the bytes of the KV cache: the same prompt gives the same
answer on every rank of a model (same --model and --seed), also through prefill and decode.
With {KEY_VARIABLE} set, all but /health, /ready and /version want
`Authorization: Bearer <key>`. Ready when /health answers. SIGTERM and SIGINT end it.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m hpc_dynamo.simulator",
        description="An OpenAI server without a model: modelled time, real KV blocks and NIXL.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("--model", required=True, help="name to serve")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=0, help="0 takes a free one and logs it (%(default)s)")
    add("--advertise-host", help="address that decode ranks fetch from (default: --host)")
    roles = ("aggregated", "prefill", "decode", "both")
    add("--role", choices=roles, default="aggregated", help="both: prefill and decode")
    timing = f"{', '.join(PROFILES)}, or a JSON file with the fields of timing.Timing"
    add("--timing", default="h100-8b", help=f"{timing} (%(default)s)")
    add("--time-scale", type=float, default=1.0, help="multiplies all times (%(default)s)")
    add("--num-blocks", type=int, default=4096, help="KV blocks of the pool (%(default)s)")
    add("--block-size", type=int, default=16, help="tokens a block (%(default)s)")
    add("--kv-bytes-per-token", type=int, default=1024, help="bytes moved a token (%(default)s)")
    add("--max-num-seqs", type=int, default=64, help="answers at once (%(default)s)")
    add("--max-num-batched-tokens", type=int, default=2048, help="tokens a step (%(default)s)")
    add("--max-model-len", type=int, default=8192, help="prompt and answer (%(default)s)")
    add("--mean-output-tokens", type=int, default=128, help="of answers that end by themselves")
    add("--kv-load-failure-policy", choices=("fail", "recompute"), default="fail")
    add("--kv-lease-s", type=float, default=120.0, help="prefilled blocks wait (%(default)s)")
    add("--kv-transfer-timeout-s", type=float, default=30.0, help="for one pull (%(default)s)")
    spoken = "whose prefill and decode protocol (%(default)s)"
    add("--dialect", choices=("vllm", "sglang", "trtllm"), default="vllm", help=spoken)
    met = "sglang: where a prefill rank meets decode ranks; 0 takes a free one"
    add("--disaggregation-bootstrap-port", type=int, default=0, help=met)
    add("--enable-prompt-tokens-details", action="store_true", help="tell prefix hits in `usage`")
    add("--enable-request-id-headers", action="store_true", help="X-Request-Id in answers")
    add("--kv-events-config", metavar="JSON", default="{}", help="as vLLM's: where to publish")
    add("--runner", choices=("auto", "generate", "pooling"), default="auto", help="as vLLM's")
    add("--enable-sleep-mode", action="store_true", help="POST /sleep and /wake_up, as vLLM's")
    add(
        "--lora-modules",
        nargs="*",
        default=[],
        help="as vLLM's: adapters with answers of their own",
    )
    add("--enable-lora", action="store_true", help="goes with them, as do three that bound them")
    for bound in ("--max-loras", "--max-cpu-loras", "--max-lora-rank"):
        add(bound, type=int, help=argparse.SUPPRESS)
    add("--nnodes", type=int, default=1, help="nodes that this rank is spread over (%(default)s)")
    add("--node-rank", type=int, default=0, help="which of them this is; 0 serves (%(default)s)")
    add("--master-addr", default="127.0.0.1", help="of node 0, where they meet (%(default)s)")
    add("--master-port", type=int, default=29501, help="(%(default)s)")
    add("--mpi", action="store_true", help="a rank of an MPI world, which Slurm numbers, a node")
    add("--seed", type=int, default=0, help="the same on all ranks of a model (%(default)s)")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    _failures(p)
    return p


def _failures(p: argparse.ArgumentParser) -> None:
    fail = p.add_argument_group("failing on purpose")
    fail.add_argument("--fail-start", action="store_true", help="exit with 1 instead of serving")
    fail.add_argument("--fail-after-requests", type=int, metavar="N", help="SIGKILL at N+1")
    fail.add_argument("--fail-on-text", default="", metavar="T", help="SIGKILL at a body with T")
    fail.add_argument("--fail-request-rate", type=float, default=0.0, metavar="P", help="500s")
    after = "the process dies when an answer has N tokens and would get more"
    fail.add_argument("--die-after-tokens", type=int, metavar="N", help=after)
    after = "no answer gets more than N tokens, nor an end"
    fail.add_argument("--stall-after-tokens", type=int, metavar="N", help=after)
    fail.add_argument("--damage-kv", action="store_true", help="hand over one wrong byte a prompt")
    lose = "publish this share of KV event batches to nobody; replays have them"
    fail.add_argument("--lose-kv-events", type=float, default=0.0, metavar="P", help=lose)
    alone = "stay when another node is gone, as if hanging in a collective operation"
    fail.add_argument("--outlive-nodes", action="store_true", help=alone)
    fail.add_argument("--start-delay-s", type=float, default=0.0, metavar="S", help="as if loading")


def in_world(args: argparse.Namespace) -> argparse.Namespace:
    """With `--mpi`: each rank is a node. Raises ConfigError outside of Slurm."""
    if args.mpi:
        try:
            args.nnodes, args.node_rank = (int(os.environ[name]) for name in WORLD)
        except KeyError as e:
            raise ConfigError(
                f"mpi: {e} is not set", hint="srun, or --nnodes and --node-rank"
            ) from e
    return args


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError for sizes that cannot work together."""
    if args.dialect == "sglang" and args.role == "both":
        what = "role: SGLang's ranks prefill or decode, not both"
        raise ConfigError(what, hint="--role prefill, --role decode, or --dialect vllm")
    if not 0 <= args.node_rank < args.nnodes:
        what = f"node-rank: {args.node_rank} is none of {args.nnodes} nodes"
        raise ConfigError(what, hint=f"--node-rank 0 to {args.nnodes - 1}")
    if args.max_model_len > args.num_blocks * args.block_size:
        have = args.num_blocks * args.block_size
        what = f"max-model-len: {args.max_model_len} tokens do not fit into the KV cache of {have}"
        raise ConfigError(what, hint=f"--max-model-len {have}, or more --num-blocks")
    if args.max_num_batched_tokens < args.max_num_seqs:
        what = f"max-num-batched-tokens: {args.max_num_batched_tokens} are fewer than max-num-seqs"
        raise ConfigError(what, hint=f"at least {args.max_num_seqs}, one token an answer a step")
    if args.block_size * args.kv_bytes_per_token % DIGEST_BYTES:
        size = args.block_size * args.kv_bytes_per_token
        hint = "--kv-bytes-per-token 1024"
        raise ConfigError(
            f"kv-bytes-per-token: a block of {size} bytes is no multiple of {DIGEST_BYTES}",
            hint=hint,
        )
