"""Two heads in front of the same engines, with and without the exchange of their loads.

    python -m benchmarks.router.peer_heads                     some minutes: three repeats
    python -m benchmarks.router.peer_heads --rate 20 --seconds 20 --repeats 1

Four simulator ranks have the timing of an 8B model on an A100 and publish KV events over TCP. They
are behind one head, or behind two that get half of the requests each. The load is an open loop with
random arrivals. Chats have 1,200 tokens, three quarters of which belong to one of 16 conversations.
Half of the requests stream 50 tokens, the others have responses of 16. Engines and heads restart
for each run, so that caches are empty.

TTFT is measured by a client, for streams. The spread is the difference in requests between the
fullest and the emptiest rank, sampled ten times per second.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.common.processes import ProcessGroup, free_port
from benchmarks.common.workload import MODEL, workload
from benchmarks.soak.clients import STREAMED, WHOLE, Bodies, LoadClients
from hpc_dynamo.demo.provision import provision
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.http import HttpClient
from hpc_dynamo.router import decode_loads

RANKS, PROMPT, KEY = 4, 1200, "benchmark"
HOST, LOOK_S, READY_S = "127.0.0.1", 0.1, 60.0
ARRANGEMENTS = {"one head": (1, False), "two, no exchange": (2, False), "two, exchange": (2, True)}


@dataclass
class Arrangement:
    """Results of the repeats of one arrangement."""

    ttft_s: list[float] = field(default_factory=list)
    spread: list[int] = field(default_factory=list)
    p50_s: list[float] = field(default_factory=list)  # one per repeat
    p99_s: list[float] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    answered: int = 0
    errors: int = 0

    def add(self, clients: Sequence[LoadClients], spread: list[int], hits: float) -> None:
        ttft_s = sorted(s for c in clients for s in c.ttft_s)
        self.p50_s.append(statistics.median(ttft_s))
        self.p99_s.append(ttft_s[int(0.99 * (len(ttft_s) - 1))])
        self.spread += spread
        self.hits.append(hits)
        self.answered += sum(c.answered for c in clients)
        self.errors += sum(c.errors.total() for c in clients)


async def measure(args: argparse.Namespace, heads: int, exchange: bool, seen: Arrangement) -> None:
    make = bodies(args.model / "tokenizer.json", random.Random(args.seed))
    random.seed(args.seed)  # arrival times
    with tempfile.TemporaryDirectory(prefix="heads-") as folder:
        async with started(Path(folder), args.model, heads, exchange) as urls:
            async with HttpClient.bearer(KEY) as http:
                clients = [LoadClients(http, url, make, leave=0.0) for url in urls]
                spread = list[int]()
                looking = asyncio.create_task(look(http, urls, spread))
                async with asyncio.TaskGroup() as group:
                    for each in clients:
                        group.create_task(each.open_loop(args.rate / heads, args.seconds))
                looking.cancel()
                await asyncio.wait([looking])
                seen.add(clients, spread, await hits(http, urls[0]))


def bodies(tokenizer: Path, draw: random.Random) -> Bodies:
    made = {
        stream: workload("shared", PROMPT, tokenizer, answer=count, stream=stream)
        for stream, count in ((True, STREAMED), (False, WHOLE))
    }
    return lambda stream: made[stream].body(draw)


@asynccontextmanager
async def started(
    folder: Path, model: Path, heads: int, exchange: bool
) -> AsyncIterator[list[str]]:
    """Yield the URLs of heads that know all ranks."""
    group = ProcessGroup(folder)
    (folder / "key").write_text(KEY)
    try:
        pairs = [await engine(group, rank) for rank in range(RANKS)]
        ports = [free_port() for _ in range(heads)]
        urls = [f"http://{HOST}:{port}" for port in ports]
        for port, url in zip(ports, urls, strict=True):
            words = ["--workers", ",".join(at for at, _ in pairs)]
            words += ["--events", ",".join(events for _, events in pairs)]
            words += ["--peers", ",".join(set(urls) - {url})] if exchange else []
            words += [f"model.path={model}", f"model.name={MODEL}", f"serve.port={port}"]
            words += [f"serve.api_key_file={folder}/key", f"runs_dir={folder}/runs", f"name={port}"]
            argv = [
                sys.executable,
                "-m",
                "hpc_dynamo",
                "route",
                *words,
                "serve.frontend_processes=1",
            ]
            await group.start(f"head-{port}", argv)
        async with asyncio.timeout(READY_S), HttpClient.bearer(KEY) as http:
            for url in urls:
                await ready(http, url, group)
        yield urls
    finally:
        await group.stop()


async def engine(group: ProcessGroup, rank: int) -> tuple[str, str]:
    """Start an engine; return its URL and its KV event endpoints."""
    port, live, replay = free_port(), *(f"tcp://{HOST}:{free_port()}" for _ in range(2))
    events = {"enable_kv_cache_events": True, "publisher": "zmq"}
    config = json.dumps({**events, "endpoint": live, "replay_endpoint": replay})
    argv = [sys.executable, "-m", "hpc_dynamo.simulator", "--model", MODEL, "--port", str(port)]
    await group.start(f"rank-{rank}", [*argv, "--timing", "a100-8b", "--kv-events-config", config])
    return f"http://{HOST}:{port}", f"{live}|{replay}"


async def ready(http: HttpClient, url: str, group: ProcessGroup) -> None:
    while len(await loads(http, url)) < RANKS:
        group.check()
        await asyncio.sleep(LOOK_S)


async def loads(http: HttpClient, url: str) -> dict[str, int]:
    """Return the requests of one head by rank, none while it starts."""
    try:
        async with http.send("GET", url, "/v1/loads") as answer:
            said = decode_loads(await answer.read())
            return {at: load.active for at, load in said.workers.items()}
    except OSError:
        return {}


async def look(http: HttpClient, urls: Sequence[str], spread: list[int]) -> None:
    """Sample the spread until cancelled."""
    while True:
        each = [await loads(http, url) for url in urls]
        sums = [sum(load.get(at, 0) for load in each) for at in each[0]]
        spread.append(max(sums) - min(sums))
        await asyncio.sleep(LOOK_S)


async def hits(http: HttpClient, url: str) -> float:
    """Return the share of prompt tokens that the engines had cached."""
    async with http.send("GET", url, "/v1/workers") as answer:
        rows = json.loads(await answer.read())["data"]
    return float(statistics.mean(row["load"]["cache_hit_rate"] for row in rows))


def table(found: dict[str, Arrangement], title: str) -> Table:
    made = Table("", "TTFT p50 ms", "TTFT p99 ms", "spread", "hits", "answered", title=title)
    for name, seen in found.items():
        if seen.p50_s:
            errors = f", {seen.errors} failed" if seen.errors else ""
            spread = f"{statistics.mean(seen.spread):.1f}"
            rate = f"{statistics.mean(seen.hits):.0%}"
            times = _ms(seen.p50_s), _ms(seen.p99_s)
            made.add_row(name, *times, spread, rate, f"{seen.answered}{errors}")
    return made


def _ms(values_s: Sequence[float]) -> str:
    least, most = 1000 * min(values_s), 1000 * max(values_s)
    return f"{1000 * statistics.median(values_s):.0f} ({least:.0f} to {most:.0f})"


async def run(args: argparse.Namespace, found: dict[str, Arrangement]) -> None:
    for repeat in range(args.repeats):
        args.seed = repeat
        for name, (heads, exchange) in ARRANGEMENTS.items():
            await measure(args, heads, exchange, found[name])


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument(
        "--rate", type=float, default=24.0, help="requests per second (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of load (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a folder with a tokenizer; else the demo's")
    args = parser.parse_args()
    found = {name: Arrangement() for name in ARRANGEMENTS}
    try:
        args.model = args.model or provision().model
        uvloop.run(run(args, found))
    except HpcDynamoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    title = f"{RANKS} ranks, {args.rate:g} requests/s, medians of {args.repeats} (least to most)"
    Console(width=110).print(table(found, title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
