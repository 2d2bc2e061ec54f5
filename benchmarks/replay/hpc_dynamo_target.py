"""hpc_dynamo as a target: a serving job with simulator engines."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.common.processes import ProcessExited
from benchmarks.common.serving import ServingJob, serving
from benchmarks.common.workload import MODEL
from benchmarks.replay.engine import write_simulator
from benchmarks.replay.results import Prefix
from benchmarks.replay.targets import Running, Setting, Start, look
from benchmarks.replay.trace import ENGINE_BLOCK, Scale
from hpc_dynamo import config
from hpc_dynamo.config import TopologyKind
from hpc_dynamo.http import HttpClient

NAME = "replay"  # name of the run
READY_S = 60.0
COUNTERS = re.compile(r"^vllm:((?:external_)?prefix_cache_\w+)_total\{.*\} (\S+)$", re.M)
KV_BYTES = 64  # per token; small, because Dynamo's mocker transfers none


def policies(scale: Scale) -> dict[str, tuple[str, ...]]:
    """Return name -> overrides of each routing policy.

    Settings in blocks or seconds are scaled.
    """
    router = config.Router()
    known = {field.name for field in fields(router)}
    kv = (
        "router=kv",
        f"router.index_capacity_blocks={router.index_capacity_blocks // scale.shrink}",
    )
    found: dict[str, tuple[str, ...]] = {"kv-approximate": kv}
    if "kv_events" in known:
        guess_s = getattr(router, "approximate_ttl_s", 0.0) / scale.compress
        ttl = (f"router.approximate_ttl_s={guess_s:g}",) if guess_s else ()
        found = {
            "kv": (*kv, "router.kv_events=true"),
            "kv-approximate": (*kv, "router.kv_events=false", *ttl),
        }
    return found | {name: (f"router={name}",) for name in ("least_loaded", "round_robin")}


def hpc_dynamo(setting: Setting, words: Sequence[str]) -> Start:
    """Return a job with these overrides."""

    @asynccontextmanager
    async def start(folder: Path, kind: TopologyKind) -> AsyncIterator[Running]:
        overrides = (*_words(setting, kind, folder), *words, *setting.words)
        async with serving(folder, NAME, setting.model, overrides) as served:
            key, token = served.run.api_key(), served.run.secrets().token
            async with HttpClient.bearer(key) as http, HttpClient.bearer(token) as inside:
                urls = await _ready(http, served, setting, kind)
                prefix = partial(_prefix, inside, urls)
                yield Running(served.url, key, (served.pid,), prefix)

    return start


def _words(setting: Setting, kind: TopologyKind, folder: Path) -> list[str]:
    """Return the engine overrides; the timing is written to a file in `folder`."""
    engine, scale, timing = setting.engine, setting.scale, folder / "timing.json"
    folder.mkdir(parents=True, exist_ok=True)
    write_simulator(engine.timing(scale, kind), timing)
    args = {
        "timing": timing,
        "time-scale": f"{1 / scale.compress:.9f}",
        "num-blocks": engine.blocks(scale),
        "block-size": ENGINE_BLOCK,
        "max-num-batched-tokens": engine.step_tokens,
        "max-model-len": setting.context,
        "kv-bytes-per-token": KV_BYTES,
        "enable-prompt-tokens-details": "true",
    }
    pools = setting.pools(kind).items()
    return [
        *("engine=simulator", f"model.name={MODEL}", f"engine.max_num_seqs={engine.sequences}"),
        f"router.block_tokens={ENGINE_BLOCK}",
        f"topology={kind}",
        *(f"topology.{role}.workers={count}" for role, count in pools),
        *(f"engine.args.{name}={value}" for name, value in args.items()),
    ]


class _Worker(msgspec.Struct):
    state: str
    url: str


class _Workers(msgspec.Struct):
    data: list[_Worker]


async def _ready(
    http: HttpClient, served: ServingJob, setting: Setting, kind: TopologyKind
) -> list[str]:
    """Return the URLs of all workers when they are ready. Raises ProcessExited."""
    wanted, deadline = sum(setting.pools(kind).values()), time.monotonic() + READY_S
    while time.monotonic() < deadline:
        page = msgspec.json.decode(await look(http, served.url, "/v1/workers"), type=_Workers)
        ready = [w for w in page.data if w.state == "ready"]
        if len(ready) == wanted:
            return [w.url for w in ready]
        await asyncio.sleep(0.2)
    what = f"{len(ready)} of {wanted} workers were ready after {READY_S:.0f} s"
    raise ProcessExited(what, log=served.run.path)


async def _prefix(engines: HttpClient, urls: Sequence[str], asked: int) -> Prefix:
    """Return the prompt tokens, and those that no engine computed.

    An engine found them in its cache, or pulled them from the engine that had computed them.
    """
    pages = [(await look(engines, url, "/metrics")).decode() for url in urls]
    counted = [dict(COUNTERS.findall(page)) for page in pages]
    computed = sum(
        float(c["prefix_cache_queries"])
        - float(c["prefix_cache_hits"])
        - float(c["external_prefix_cache_hits"])
        for c in counted
    )
    return Prefix(asked, asked - computed, "engines")
