"""The command line of the simulator, and checks of sizes that depend on each other."""

import argparse
import os

from hpc_dynamo.errors import ConfigError
from hpc_dynamo.simulator.bad_answers import BadAnswer
from hpc_dynamo.simulator.blocks import DIGEST_BYTES
from hpc_dynamo.timing_model import PROFILES

KEY_VARIABLE = "HPC_DYNAMO_ENGINE_KEY"
STEP_VARIABLES = ("SLURM_NTASKS", "SLURM_PROCID")

EPILOG = f"""\
examples:
  python -m hpc_dynamo.simulator --model demo --port 8000
  python -m hpc_dynamo.simulator --model demo --port 8001 --role prefill
  python -m hpc_dynamo.simulator --model demo --port 8002 --role decode

Outputs are random words, selected by the bytes of the KV cache. The same prompt gives the same
output on every rank of a model (same --model and --seed), also through prefill and decode.
If {KEY_VARIABLE} is set, all paths except /health, /ready and /version need
`Authorization: Bearer <key>`. The server is ready when /health answers. SIGTERM and SIGINT end it.
"""


ROLES = ("aggregated", "prefill", "decode", "both")


def parser() -> argparse.ArgumentParser:
    """Return the parser. Options that vLLM also has mean the same as there."""
    p = argparse.ArgumentParser(
        prog="python -m hpc_dynamo.simulator",
        description="An OpenAI server without a model: modelled time, real KV blocks and NIXL.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("--model", required=True, help="name to serve")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=0, help="0: any free port, which is logged (%(default)s)")
    add("--advertise-host", help="address for connections of decode ranks (default: --host)")
    add("--role", choices=ROLES, default="aggregated", help="both: prefill and decode")
    timing = f"{', '.join(PROFILES)}, or a JSON file with coefficients"
    add("--timing", default="h100-8b", help=f"duration of steps: {timing} (%(default)s)")
    add("--time-scale", type=float, default=1.0, help="multiplies all durations (%(default)s)")
    add("--num-blocks", type=int, default=4096, help="KV blocks, of each rank (%(default)s)")
    add("--block-size", type=int, default=16, help="tokens per block (%(default)s)")
    add("--kv-bytes-per-token", type=int, default=1024, help="size of the KV cache (%(default)s)")
    add("--max-num-seqs", type=int, default=64, help="running sequences (%(default)s)")
    add("--max-num-batched-tokens", type=int, default=2048, help="tokens per step (%(default)s)")
    add("--max-model-len", type=int, default=8192, help="prompt and output tokens (%(default)s)")
    add("--mean-output-tokens", type=int, default=128, help="mean output length (%(default)s)")
    add("--kv-load-failure-policy", choices=("fail", "recompute"), default="fail")
    add("--kv-lease-s", type=float, default=120.0, help="life of prefilled blocks (%(default)s)")
    add("--kv-transfer-timeout-s", type=float, default=30.0, help="limit of a pull (%(default)s)")
    protocol = "engine whose prefill and decode protocol is used (%(default)s)"
    choices = ("vllm", "sglang", "trtllm")
    add("--pd-protocol", choices=choices, default="vllm", help=protocol)
    add("--internal-request-auth-key", default="", help="TensorRT-LLM: key of signed transfers")
    add("--enable-prompt-tokens-details", action="store_true", help="prefix hits in `usage`")
    add("--enable-request-id-headers", action="store_true", help="X-Request-Id in responses")
    add("--kv-events-config", metavar="JSON", default="{}", help="where to publish KV events")
    add("--runner", choices=("auto", "generate", "pooling"), default="auto", help="as in vLLM")
    add("--enable-sleep-mode", action="store_true", help="POST /sleep and /wake_up")
    add("--lora-modules", nargs="*", default=[], help="adapters, each with its own outputs")
    add("--enable-lora", action="store_true", help="no effect, like the limits of adapters")
    for limit in ("--max-loras", "--max-cpu-loras", "--max-lora-rank"):
        add(limit, type=int, help=argparse.SUPPRESS)
    add("--nnodes", type=int, default=1, help="nodes of this rank (%(default)s)")
    add("--node-rank", type=int, default=0, help="number of this node; 0 serves (%(default)s)")
    add("--master-addr", default="127.0.0.1", help="address of node 0 (%(default)s)")
    add("--master-port", type=int, default=29501, help="port of node 0 (%(default)s)")
    add("--mpi", action="store_true", help="the nodes are the tasks of this Slurm step")
    add("--seed", type=int, default=0, help="the same on all ranks of a model (%(default)s)")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    for add_group in (_add_sglang, _add_ranks_and_drafts, _add_failures):
        add_group(p)
    return p


def _add_sglang(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("only with --pd-protocol sglang").add_argument
    bootstrap = "port of a prefill rank's bootstrap server; 0: any free port"
    add("--disaggregation-bootstrap-port", type=int, default=0, help=bootstrap)
    switch = "POST /pd_role_switch changes the role of an idle rank"
    add("--enable-pd-role-switch", action="store_true", help=switch)
    left = "time until a rank ends requests whose client has left (%(default)s)"
    add("--disconnect-check-s", type=float, default=4.0, help=left)


def _add_ranks_and_drafts(p: argparse.ArgumentParser) -> None:
    help_text = "data-parallel ranks, each with a KV cache (%(default)s)"
    p.add_argument("--data-parallel-size", type=int, default=1, metavar="N", help=help_text)
    drafts = "of each sequence, as if drafts were accepted (%(default)s)"
    p.add_argument("--tokens-per-step", type=int, default=1, metavar="N", help=drafts)


def _add_failures(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("injected failures").add_argument
    add("--fail-start", action="store_true", help="exit with code 1 instead of serving")
    add("--fail-after-requests", type=int, metavar="N", help="SIGKILL at request N+1")
    add("--fail-on-text", default="", metavar="T", help="SIGKILL at a body that contains T")
    add("--fail-request-rate", type=float, default=0.0, metavar="P", help="share of status 500")
    die = "exit when an output has N tokens and would continue"
    add("--die-after-tokens", type=int, metavar="N", help=die)
    stall = "outputs neither grow beyond N tokens nor end"
    add("--stall-after-tokens", type=int, metavar="N", help=stall)
    hang = "after N requests compute nothing more, but answer /health"
    add("--hang-after-requests", type=int, metavar="N", help=hang)
    bad = "answer 200 with this instead of an output; `half` cuts the output off"
    add("--bad-answers", choices=[kind.value for kind in BadAnswer], help=bad)
    after = "requests that are answered well before (%(default)s: the probe of hpc-dynamo)"
    add("--bad-after-requests", type=int, default=1, metavar="N", help=after)
    add("--damage-kv", action="store_true", help="one wrong byte in each prompt that is handed off")
    outlive = "keep running when another node is lost, like a hanging collective operation"
    add("--outlive-nodes", action="store_true", help=outlive)
    delay = "delay before serving, like loading weights"
    add("--start-delay-s", type=float, default=0.0, metavar="S", help=delay)


def set_nodes_from_slurm(args: argparse.Namespace) -> None:
    """With `--mpi`, take number and rank of the nodes from Slurm. Raises ConfigError."""
    if args.mpi:
        try:
            args.nnodes, args.node_rank = (int(os.environ[name]) for name in STEP_VARIABLES)
        except KeyError as e:
            hint = "start it with srun, or use --nnodes and --node-rank"
            raise ConfigError(f"mpi: {e} is not set", hint=hint) from e


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that contradict each other."""
    if args.pd_protocol == "sglang" and args.role == "both":
        what = "role: a rank with SGLang's protocol prefills or decodes, but not both"
        raise ConfigError(what, hint="--role prefill, --role decode, or --pd-protocol vllm")
    if not 0 <= args.node_rank < args.nnodes:
        what = f"node-rank: {args.node_rank} is none of {args.nnodes} nodes"
        raise ConfigError(what, hint=f"--node-rank 0 to {args.nnodes - 1}")
    if args.data_parallel_size < 1:
        what = f"data-parallel-size: {args.data_parallel_size} ranks"
        raise ConfigError(what, hint="--data-parallel-size 1")
    capacity = args.num_blocks * args.block_size
    if args.max_model_len > capacity:
        what = f"{args.max_model_len} tokens do not fit into the KV cache of {capacity}"
        hint = f"--max-model-len {capacity}, or more --num-blocks"
        raise ConfigError(f"max-model-len: {what}", hint=hint)
    if args.max_num_batched_tokens < args.max_num_seqs:
        what = f"max-num-batched-tokens: {args.max_num_batched_tokens} are fewer than max-num-seqs"
        hint = f"at least {args.max_num_seqs}, a token per sequence and step"
        raise ConfigError(what, hint=hint)
    size = args.block_size * args.kv_bytes_per_token
    if size % DIGEST_BYTES:
        what = f"kv-bytes-per-token: a block of {size} bytes is no multiple of {DIGEST_BYTES}"
        raise ConfigError(what, hint="--kv-bytes-per-token 1024")
