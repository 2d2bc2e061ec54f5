"""Checks of `route`: URLs of engines that already run, and the endpoints of their KV events."""

from collections.abc import Iterable
from urllib.parse import urlsplit

from hpc_dynamo.config.schema.topology import Role
from hpc_dynamo.config.schema.workload import Route
from hpc_dynamo.errors import ConfigError

EXAMPLE = "http://localhost:8000"
BASE_PATHS = ("", "/v1")  # paths of a base URL; OpenAI clients use the second
TRANSPORTS = ("tcp", "ipc")
EVENTS = "tcp://localhost:5557|tcp://localhost:5558, where one publishes and where it replays"


def base_urls(field: str, urls: Iterable[str]) -> tuple[str, ...]:
    """Return the URLs without path. Raises ConfigError for a text that is not a base URL."""
    return tuple(_base_url(f"route.{field}", url) for url in urls)


def _base_url(field: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        valid = False
    if not valid:
        raise ConfigError(f"{field}: {url!r} is not a URL", hint=f"such as {EXAMPLE}")
    has_path = parts.path.rstrip("/") not in BASE_PATHS
    if has_path or parts.query or parts.fragment or "@" in parts.netloc:
        hint = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}, only host and port"
        raise ConfigError(f"{field}: {url!r} is not a base URL", hint=hint)
    return f"{parts.scheme}://{parts.netloc}"


def check_route(route: Route) -> None:
    """Check that the engines form one topology, and that each has its events or none has."""
    hint = f"--workers {EXAMPLE},http://localhost:8001, or --prefill URL,… --decode URL,…"
    urls = [url for _, url in route.engines]
    if not urls:
        raise ConfigError("no engine is named to route to", hint=hint)
    if route.workers and (route.prefill or route.decode):
        what = "route.workers cannot be combined with route.prefill and route.decode"
        raise ConfigError(what, hint=hint)
    if bool(route.prefill) != bool(route.decode):
        given, missing = (
            (Role.prefill, Role.decode) if route.prefill else (Role.decode, Role.prefill)
        )
        raise ConfigError(f"route.{given} without route.{missing}", hint=hint)
    if twice := next((url for url in urls if urls.count(url) > 1), ""):
        raise ConfigError(f"{twice} is named twice", hint="one rank for each URL")
    _check_events(route)


def _check_events(route: Route) -> None:
    count = len(route.engines)
    if route.events and len(route.events) != count:
        what = f"route.events names {len(route.events)} engines, there are {count}"
        raise ConfigError(what, hint="one for each, in the order of their ranks, or none")
    for pair in route.events:
        ends = [urlsplit(end) for end in pair.split("|")]
        if len(ends) != 2 or not all(e.scheme in TRANSPORTS and (e.netloc or e.path) for e in ends):
            raise ConfigError(f"route.events: {pair!r} is not live|replay", hint=EVENTS)
