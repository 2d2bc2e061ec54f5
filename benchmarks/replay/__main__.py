"""Command line of `python -m benchmarks.replay`; see the package."""

import argparse
import asyncio
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import replay
from benchmarks.common import provision
from benchmarks.common.machine import cpu_model
from benchmarks.replay import plot, timing_check
from benchmarks.replay.dynamo_target import MODES, OPTION, dynamo
from benchmarks.replay.engine import Engine
from benchmarks.replay.hpc_dynamo_target import hpc_dynamo, policies
from benchmarks.replay.load import Seen
from benchmarks.replay.measure import Load, measure
from benchmarks.replay.oracle import oracle
from benchmarks.replay.results import Found, Label, Targets
from benchmarks.replay.sweep import grid
from benchmarks.replay.tables import tables
from benchmarks.replay.targets import Setting, Start
from benchmarks.replay.trace import Scale, read
from hpc_dynamo.config import TopologyKind
from hpc_dynamo.demo.provision import provision as provision_model
from hpc_dynamo.errors import HpcDynamoError, UsageError, unknown_name

TRACE = Path("../shared/traces/mooncake_conversation.jsonl")
QUICK = 400  # requests
SWEEP = "every combination is run; dynamo.OPTION for one of its frontend's, without the dashes"
PEERS = {f"dynamo-{mode}": mode for mode in MODES}


class Show:
    """A progress bar on a terminal, otherwise one line per run."""

    def __init__(self, bar: Progress | None, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=total) if bar else None

    def text(self, text: str) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=text)
        else:
            print(text, file=sys.stderr, flush=True)

    def done(self, seen: Seen) -> None:
        if self._bar and self._task is not None:
            self._bar.advance(self._task)


@contextmanager
def showing(total: int) -> Iterator[Show]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Show(None, total)
        return
    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    last = TextColumn("{task.description}")
    with Progress(*columns, last, console=console, refresh_per_second=2) as bar:
        yield Show(bar, total)


def systems(args: argparse.Namespace, setting: Setting) -> dict[str, tuple[Start, tuple[str, ...]]]:
    """Return name -> how the system is started, for all systems to measure."""
    known = policies(setting.scale)
    chosen = args.systems or [*known, *(() if args.quick else PEERS)]
    for name in chosen:
        if name not in {**known, **PEERS}:
            raise unknown_name("systems", name, [*known, *PEERS])
    env = provision.dynamo() if PEERS.keys() & set(chosen) else Path()
    found: dict[str, tuple[Start, tuple[str, ...]]] = {}
    for name in chosen:
        own = name in known
        axes = [axis for axis in args.sweep if axis.startswith(OPTION) != own]
        for cell in grid([] if PEERS.get(name) == "round-robin" else axes):
            words = (*known.get(name, ()), *cell)
            start = hpc_dynamo(setting, words) if own else dynamo(setting, env, PEERS[name], words)
            shown = (word.removeprefix("router.").removeprefix(OPTION) for word in cell)
            found[" ".join((name, *shown))] = (start, words)
    return found


async def run(args: argparse.Namespace, folder: Path, found: Found, load: Load) -> None:
    """Run every system with the whole load `repeats` times; add the results to `found`."""
    _end_on_sigterm()
    chosen = systems(args, args.setting)
    rounds = [(r, k, s) for r in range(args.repeats) for k in args.topology for s in chosen]
    with showing(len(rounds) * len(load.requests)) as show:
        for repeat, topology, name in rounds:
            start, words = chosen[name]
            show.text(f"{topology} {name}, {repeat + 1} of {args.repeats}")
            label = Label(name, topology, repeat, words)
            place = folder / f"{repeat}-{topology}-{name.replace(' ', '-')}"
            found.runs.append(await measure(start, label, load, place, show.done))
            if args.out:
                _write(found, args.out)


def _end_on_sigterm() -> None:
    me = asyncio.current_task()
    assert me
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay", description=replay.__doc__, formatter_class=raw
    )
    add, engine = parser.add_argument, Engine()
    add("--quick", action="store_true", help=f"{QUICK} requests, only policies of hpc_dynamo")
    add("--trace", type=Path, default=TRACE, help="Mooncake's JSON lines (%(default)s)")
    add("--requests", type=int, default=3000, help="number of requests; 0: all (%(default)s)")
    add("--skip", type=int, default=0, help="leave out so many before them (%(default)s)")
    add("--compress", type=float, default=10, help="the trace's time (%(default)s)")
    add("--shrink", type=int, default=8, help="the trace's tokens (%(default)s)")
    add("--workers", type=int, default=8, help="modelled engines (%(default)s)")
    add("--cache-tokens", type=int, default=engine.cache_tokens, help="of one (%(default)s)")
    kinds = [str(kind) for kind in TopologyKind]
    add("--topology", nargs="+", choices=kinds, default=kinds, help="default: both")
    known = ", ".join([*policies(Scale(1, 1)), *PEERS])
    add("--systems", nargs="+", metavar="NAME", help=f"of {known}; default: all")
    add("--sweep", nargs="+", default=[], metavar="FIELD=V1,V2", help=SWEEP)
    add("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="as for hpc-dynamo serve")
    add("--repeats", type=int, default=1, help="of everything (%(default)s)")
    add("--ttft-target", type=float, default=2, metavar="S", help="for goodput (%(default)s)")
    add("--itl-target", type=float, default=40, metavar="MS", help="for goodput (%(default)s)")
    add("--model", type=Path, help="folder with tokenizer.json; default: SmolLM2")
    add("--out", type=Path, metavar="DIR", help="write replay.json and replay.png there")
    add("--check-timing", action="store_true", help="measure the modelled engines, and end")
    return parser


def _prepare(args: argparse.Namespace) -> tuple[Load, Found]:
    """Check all inputs before anything starts."""
    if args.quick:
        args.requests = QUICK
    if args.workers < 2:
        raise UsageError(f"--workers {args.workers}: two at least, one to prefill for the other")
    if args.out:
        plot.need()
        args.out.mkdir(parents=True, exist_ok=True)
    scale, engine = Scale(args.compress, args.shrink), Engine(cache_tokens=args.cache_tokens)
    requests = read(args.trace, args.requests, scale, args.skip)
    context = engine.longest(requests, scale)
    model = (args.model or provision_model().model).absolute()
    args.setting = Setting(engine, scale, args.workers, context, model, tuple(args.set))
    load = Load(requests, scale, Targets(args.ttft_target, args.itl_target / 1e3))
    return load, Found(_machine(), args.trace.name, _settings(args, load))


def _settings(args: argparse.Namespace, load: Load) -> dict[str, float | int | str]:
    return {
        "requests": len(load.requests),
        "compress": args.compress,
        "shrink": args.shrink,
        "workers": args.workers,
        "cache tokens": args.cache_tokens,
        "TTFT target s": args.ttft_target,
        "ITL target ms": args.itl_target,
    }


def _machine() -> str:
    return f"{len(os.sched_getaffinity(0))} cores {cpu_model()}, Python {platform.python_version()}"


def _oracles(args: argparse.Namespace, load: Load, found: Found) -> None:
    blocks = args.setting.engine.blocks(args.setting.scale)
    for topology in args.topology:
        first = next(iter(args.setting.pools(TopologyKind(topology)).values()))
        together = TopologyKind(topology) is TopologyKind.aggregated
        found.oracles[topology] = oracle(load.requests, first, blocks, answers=together)


def _write(found: Found, folder: Path) -> None:
    (folder / "replay.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    plot.draw(found, folder / "replay.png")


def main() -> int:
    args = _parser().parse_args()
    found, code = None, 1
    folder = Path(tempfile.mkdtemp(prefix="hpc-dynamo-replay-"))
    try:
        load, found = _prepare(args)
        if args.check_timing:
            Console(width=120).print(uvloop.run(timing_check.run(args.setting, folder)))
        else:
            _oracles(args, load, found)
            uvloop.run(run(args, folder, found, load))
        code = 0
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        code = e.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; what is complete follows", file=sys.stderr)
        code = 130
    finally:
        for table in tables(found) if found else ():
            Console(width=190).print(table)
        if code:
            print(f"logs of all systems: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
