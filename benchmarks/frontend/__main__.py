"""Compare hpc-dynamo's frontend, NVIDIA Dynamo's and two Rust routers on the same two cores.

    python -m benchmarks.frontend                     about an hour: all sizes, three repeats
    python -m benchmarks.frontend --quick             a few minutes: 1,200 tokens, one repeat
    python -m benchmarks.frontend --systems dynamo vllm-router --workload unique

Each target is started for each table and repeat, and warmed up by each load for a second. It shares
the cores with the load generator and the backend; CPU seconds are measured separately. Requires wrk
and nginx; the peers are installed once into hpc-dynamo's cache.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.common.provision import Environments, environments
from benchmarks.common.workload import KINDS
from benchmarks.frontend import peers
from benchmarks.frontend.hpc_dynamo_target import HpcDynamoTarget
from benchmarks.frontend.load import Load, measure, warm_up
from benchmarks.frontend.peers import DynamoTarget, FixedBackend
from benchmarks.frontend.results import Results, tables
from benchmarks.frontend.targets import BackendKind, Target
from hpc_dynamo.demo.provision import provision
from hpc_dynamo.errors import HpcDynamoError, unknown_name

CORES = 2
ANSWER_TOKENS, STREAMS, STREAM_PROMPT = 200, 64, 1200

TargetFactory = Callable[[Path, BackendKind], Target]
"""Creates a target with a log folder and a kind of backend. A new target is one line in
`target_factories`."""


def target_factories(envs: Environments, model: Path) -> dict[str, TargetFactory]:
    """Return all targets by the name for --systems."""

    def dynamo(tokenizer: str, folder: Path, behind: BackendKind) -> Target:
        return DynamoTarget(folder, envs, model, tokenizer, behind.step_s)

    def router(
        make: Callable[[Path, Environments, FixedBackend], Target],
        folder: Path,
        behind: BackendKind,
    ) -> Target:
        return make(folder, envs, FixedBackend(folder / "backend", behind))

    def hpc_dynamo(frontends: int, folder: Path, behind: BackendKind) -> Target:
        return HpcDynamoTarget(folder, model, frontends, FixedBackend(folder / "backend", behind))

    return {
        "hpc-dynamo": partial(hpc_dynamo, 1),
        "hpc-dynamo-2": partial(hpc_dynamo, 2),
        "dynamo": partial(dynamo, "default"),
        "dynamo-fastokens": partial(dynamo, "fastokens"),
        "vllm-router": partial(router, peers.vllm_router),
        "sglang-router": partial(router, peers.sglang_router),
        "backend": FixedBackend,
    }


def loads(args: argparse.Namespace) -> list[Load]:
    """Return the loads for each target."""
    kind, seconds = args.workload, args.seconds
    answers = [
        Load(kind, tokens, connections, 1, BackendKind.ANSWERS, seconds)
        for tokens in args.tokens
        for connections in args.connections
    ]
    streams = [
        Load(kind, STREAM_PROMPT, args.streams, ANSWER_TOKENS, behind, seconds)
        for behind in (BackendKind.FAST, BackendKind.PACED)
    ]
    return answers + (streams if args.streams else [])


async def run(chosen: dict[str, TargetFactory], args: argparse.Namespace, found: Results) -> None:
    """Measure each load on each target `repeats` times; add the results to `found`."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, _current().cancel)
    for repeat in range(args.repeats):
        for name, candidate in chosen.items():
            for behind in BackendKind:
                folder = args.folder / f"{repeat}-{name}-{behind.name.lower()}"
                asked = [load for load in loads(args) if load.backend_kind is behind]
                if asked:
                    await _one(candidate(folder, behind), asked, args, folder, found)


async def _one(
    system: Target, asked: Sequence[Load], args: argparse.Namespace, folder: Path, found: Results
) -> None:
    tokenizer = args.model / "tokenizer.json"
    try:
        url = await system.start()
        for load in asked:
            await warm_up(system, url, load, tokenizer, folder)
            figure = await measure(system, url, load, tokenizer, folder)
            found.add(system, load, figure)
            _log(f"{system.name}: {load}: {figure}")
    finally:
        await asyncio.shield(system.stop())


def _current() -> "asyncio.Task[None]":
    task = asyncio.current_task()
    assert task
    return task


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--workload", choices=KINDS, default="shared")
    parser.add_argument("--tokens", type=int, nargs="+", default=[100, 1200, 8000])
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--streams", type=int, default=STREAMS, help="concurrent streams; 0: none")
    parser.add_argument("--seconds", type=int, default=5, help="duration of each load")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="1,200 tokens, 3 s, one repeat")
    parser.add_argument("--model", type=Path, help="folder with tokenizer.json; default: SmolLM2")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    return parser


def main() -> int:
    args = _parser().parse_args()
    if args.quick:
        args.tokens, args.seconds, args.repeats = [STREAM_PROMPT], 3, 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # child processes inherit it
    args.folder, found = Path(tempfile.mkdtemp(prefix="hpc-dynamo-frontend-")), Results()
    code = 1
    try:
        args.model = args.model or provision().model
        asyncio.run(run(_chosen(args), args, found))
        shutil.rmtree(args.folder)
        code = 0
    except HpcDynamoError as e:
        _log(f"error: {e}")
        code = e.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError):
        _log("interrupted")
        code = 130
    finally:
        if code:
            _log(f"logs of all targets: {args.folder}")
        _show(found, args)
    return code


def _chosen(args: argparse.Namespace) -> dict[str, TargetFactory]:
    known = target_factories(environments(), args.model)
    for name in args.systems or ():
        if name not in known:
            raise unknown_name("systems", name, known)
    return {name: known[name] for name in args.systems or known}


def _show(found: Results, args: argparse.Namespace) -> None:
    for table in tables(found):
        Console(width=160).print(table)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in found.rows], default=str))


if __name__ == "__main__":
    sys.exit(main())
