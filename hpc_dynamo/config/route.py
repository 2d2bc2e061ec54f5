"""A run before engines that are there already: what their addresses must be, and its topology."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from hpc_dynamo.config.schema import Config, Device, Pool, Role, Route, Topology, TopologyKind
from hpc_dynamo.errors import ConfigError

EXAMPLE = "http://localhost:8000"
PATHS = ("", "/v1")  # of a base URL; what clients are told has the second
TRANSPORTS = ("tcp", "ipc")
EVENTS = "tcp://localhost:5557|tcp://localhost:5558, where one publishes and where it replays"


def with_route_topology(config: Config) -> Config:
    """The configuration with a topology of the engines of `config.route`. Raises ConfigError."""
    given = config.route
    route = replace(
        given,
        workers=_urls("workers", given.workers),
        prefill=_urls("prefill", given.prefill),
        decode=_urls("decode", given.decode),
        peers=_urls("peers", given.peers),
    )
    _check_roles(route)
    _check_events(route)
    if route.peers and not config.serve.api_key_file:
        hint = "serve.api_key_file=FILE, the same for all of them"
        raise ConfigError("route.peers need an API key that they share", hint=hint)
    engine = replace(config.engine, device=Device.cpu)  # ours to place are none of its GPUs
    return replace(config, route=route, engine=engine, topology=_topology(route))


def _topology(route: Route) -> Topology:
    if route.workers:
        return Topology(
            TopologyKind.aggregated, nodes=1, aggregated=Pool(workers=len(route.workers))
        )
    prefill, decode = Pool(workers=len(route.prefill)), Pool(workers=len(route.decode))
    return Topology(TopologyKind.disaggregated, nodes=1, prefill=prefill, decode=decode)


def _urls(name: str, urls: Iterable[str]) -> tuple[str, ...]:
    return tuple(_url(f"route.{name}", url) for url in urls)


def _url(field: str, url: str) -> str:
    """Without what follows the port."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        fits = False
    if not fits:
        raise ConfigError(f"{field}: {url!r} is not a URL", hint=f"such as {EXAMPLE}")
    if parts.path.rstrip("/") not in PATHS or parts.query or parts.fragment or "@" in parts.netloc:
        hint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}, host and port alone"
        raise ConfigError(f"{field}: {url!r} is not a base URL", hint=hint)
    return f"{parts.scheme}://{parts.netloc}"


def _check_roles(route: Route) -> None:
    hint = f"--workers {EXAMPLE},http://localhost:8001, or --prefill URL,… --decode URL,…"
    urls = [url for _, url in route.engines]
    if not urls:
        raise ConfigError("no engine is named to route to", hint=hint)
    if route.workers and (route.prefill or route.decode):
        what = "route.workers do all of a request; route.prefill and route.decode share it"
        raise ConfigError(f"{what}: not both", hint=hint)
    for role, there, missing in (
        (Role.prefill, route.prefill, route.decode),
        (Role.decode, route.decode, route.prefill),
    ):
        if there and not missing:
            other = Role.decode if role is Role.prefill else Role.prefill
            raise ConfigError(f"route.{role} without route.{other}", hint=hint)
    if twice := _twice(urls):
        raise ConfigError(f"{twice} is named twice", hint="one rank for each URL")


def _twice(urls: Sequence[str]) -> str:
    return next((url for url in urls if urls.count(url) > 1), "")


def _check_events(route: Route) -> None:
    count = len(route.engines)
    if route.events and len(route.events) != count:
        what = f"route.events names {len(route.events)} engines, there are {count}"
        raise ConfigError(what, hint="one for each, in the order of their ranks, or none")
    for pair in route.events:
        ends = [urlsplit(end) for end in pair.split("|")]
        if len(ends) != 2 or not all(e.scheme in TRANSPORTS and (e.netloc or e.path) for e in ends):
            raise ConfigError(f"route.events: {pair!r} is not live|replay", hint=EVENTS)
