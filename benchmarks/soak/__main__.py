"""Run and report of the soak benchmark; see the package."""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import soak
from benchmarks.soak.checks import checks
from benchmarks.soak.clients import Bodies, LoadClients, bodies
from benchmarks.soak.faults import FaultLoop
from benchmarks.soak.job import SoakJob, start
from benchmarks.soak.report import p50_p99_ms, sample_line, tables
from benchmarks.soak.results import SoakResults, SoakSample
from hpc_dynamo.cli.chaos.schedule import ProcessKind
from hpc_dynamo.demo.provision import provision
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.http import HttpClient

CAPACITY_S, WARM_S = 20.0, 2.0
SAMPLE_S, SAY_S = 10.0, 60.0
SETTLE_S = 80.0  # servers close idle connections after 75 s; short runs do not wait
SETTLED_MIN = 5.0
RESTARTS = 1000  # with faults, which hit the same worker again and again


class ProgressDisplay:
    """Progress bar on a terminal, otherwise one line per minute."""

    def __init__(self, bar: Progress | None, minutes: float) -> None:
        self._bar, self._said_at = bar, float("-inf")
        self._task = bar.add_task("", total=60 * minutes) if bar else None

    def text(self, text: str) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=text)
        else:
            print(text, file=sys.stderr, flush=True)

    def sample(self, sample: SoakSample, errors: int) -> None:
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=sample.at_s)
        if self._bar or sample.at_s - self._said_at > SAY_S - SAMPLE_S / 2:
            self.text(sample_line(sample, errors))
            self._said_at = sample.at_s


@contextmanager
def progress_display(minutes: float) -> Iterator[ProgressDisplay]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressDisplay(None, minutes)
        return
    columns = (BarColumn(20), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, refresh_per_second=1) as bar:
        yield ProgressDisplay(bar, minutes)


async def run(
    args: argparse.Namespace, folder: Path, found: SoakResults, show: ProgressDisplay
) -> None:
    """Run the benchmark and fill `found`. SIGTERM cancels it like Ctrl-C."""
    me = asyncio.current_task()
    assert me
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    make = bodies(args.model / "tokenizer.json")
    words = [f"serve.frontend_processes={args.frontends}"] if args.frontends else []
    if args.faults is not None:
        words.append(f"engine.max_restarts={RESTARTS}")
    words += args.overrides
    show.text("the job is starting")
    async with start(folder, args.model, words) as job:
        show.text("warming up" if args.capacity else "measuring the capacity")
        found.capacity_hz = await _capacity(job, make, args.capacity)
        found.rate_hz = args.share * found.capacity_hz
        show.text(f"capacity {found.capacity_hz:.0f}/s; waiting until all is idle")
        await asyncio.sleep(SETTLE_S if found.minutes >= SETTLED_MIN else 0)
        found.start_gauges, found.start = await job.wait_until_idle({})
        async with HttpClient.bearer(job.key) as http, _faults(args, job, found):
            await _load(job, LoadClients(http, job.url, make, args.leave), found, show)
        show.text("waiting until all is given back")
        found.gauges, found.end = await job.wait_until_idle(found.start)


@asynccontextmanager
async def _faults(
    args: argparse.Namespace, job: SoakJob, found: SoakResults
) -> AsyncIterator[None]:
    """Inject faults meanwhile, if the arguments have a seed."""
    if args.faults is None:
        yield
        return
    found.with_faults = True
    loop = FaultLoop(job.attempt, args.faults, args.fault_s, args.fault_kinds, found.faults)
    task = asyncio.create_task(loop.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _capacity(job: SoakJob, make: Bodies, known: float | None) -> float:
    async with HttpClient.bearer(job.key) as http:
        clients = LoadClients(http, job.url, make, leave=0.0)
        await clients.closed_loop(WARM_S)
        found = known or await clients.closed_loop(CAPACITY_S)
    if not clients.answered:
        raise HpcDynamoError(f"no request was answered; {clients.first_error}")
    return found


async def _load(
    job: SoakJob, clients: LoadClients, found: SoakResults, show: ProgressDisplay
) -> None:
    """Run the load, with a sample every SAMPLE_S and one at its end."""
    seconds, began = 60 * found.minutes, time.perf_counter()
    load = asyncio.create_task(clients.open_loop(found.rate_hz, seconds))
    try:
        while not load.done():
            mark = CounterSnapshot(
                time.perf_counter(), clients.answered, clients.disconnected, job.other_programs_s()
            )
            left_s = max(1.0, began + seconds - mark.at)
            await asyncio.wait([load], timeout=min(SAMPLE_S, left_s))
            sample = await _sample(job, clients, began, mark)
            found.samples.append(sample)
            found.sent, found.disconnected = clients.sent, clients.disconnected
            found.errors, found.first_error = clients.errors, clients.first_error
            show.sample(sample, clients.errors.total())
        await load
    finally:
        load.cancel()
        await asyncio.wait([load])


class CounterSnapshot(NamedTuple):
    """Counters at the time of the last sample."""

    at: float
    answered: int
    left: int
    others_s: float


async def _sample(
    job: SoakJob, clients: LoadClients, began: float, mark: CounterSnapshot
) -> SoakSample:
    now = time.perf_counter()
    sample = SoakSample(
        at_s=now - began,
        rate_hz=(clients.answered - mark.answered) / (now - mark.at),
        other_programs_cores=(job.other_programs_s() - mark.others_s) / (now - mark.at),
        disconnected=clients.disconnected - mark.left,
        errors=dict(clients.errors),
        whole_ms=p50_p99_ms(clients.whole_s),
        stream_ms=p50_p99_ms(clients.stream_s),
        ttft_ms=p50_p99_ms(clients.ttft_s),
        gauges=await job.gauges(),
        processes=job.processes(),
        run_folder_mib=job.run_folder_mib(),
    )
    clients.reset_samples()
    return sample


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=soak.__doc__, formatter_class=raw
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--share", type=float, default=0.8, help="share of the capacity (%(default)s)"
    )
    parser.add_argument(
        "--leave", type=float, default=0.05, help="share of clients that disconnect (%(default)s)"
    )
    parser.add_argument("--frontends", type=int, help="frontend processes")
    parser.add_argument("--capacity", type=float, help="requests/s; default: measured, 20 s")
    parser.add_argument("--model", type=Path, help="folder with tokenizer.json; default: SmolLM2")
    parser.add_argument("--faults", type=int, metavar="SEED", help="inject random faults")
    about = "mean seconds between two faults (%(default)s)"
    parser.add_argument("--fault-s", type=float, default=60.0, help=about)
    parser.add_argument(
        "--fault-kinds",
        type=lambda text: [ProcessKind(kind) for kind in text.split(",")],
        default=[ProcessKind.engine, ProcessKind.frontend],
        help="processes of the faults, comma-separated (engine,frontend)",
    )
    parser.add_argument("overrides", nargs="*", help="FIELD=VALUE, as for hpc-dynamo serve")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    return parser


def main() -> int:
    args = _parser().parse_args()
    found, code = SoakResults(args.minutes), 1
    folder = Path(tempfile.mkdtemp(prefix="hpc-dynamo-soak-"))
    try:
        args.model = (args.model or provision().model).absolute()
        with progress_display(args.minutes) as show:
            uvloop.run(run(args, folder, found, show))
        code = 0 if all(good for *_, good in checks(found)) else 1
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        code = e.exit_code
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        code = 130
    finally:
        _report(found, args.json)
        if code:
            print(f"logs of the job: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    return code


def _report(found: SoakResults, file: Path | None) -> None:
    for table in tables(found):
        Console(width=140).print(table)
    if found.first_error:
        print(f"the first error: {found.first_error}")
    if file:
        file.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    sys.exit(main())
