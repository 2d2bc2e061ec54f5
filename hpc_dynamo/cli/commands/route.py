"""`hpc-dynamo route`: the endpoint of `serve` before engines that somebody else started."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace

import msgspec

from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.launch_run import files, go, key_file, placed, say
from hpc_dynamo.cli.run_folder import serve_run
from hpc_dynamo.config import Config, Launcher, Task, resolve_route
from hpc_dynamo.engines import engine
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import plan as lay_out

LISTS = {
    "workers": "of engines that do all of a request",
    "prefill": "of engines that compute prompts",
    "decode": "of engines that pull their KV cache and answer",
    "events": "of each engine: live|replay, the ZMQ endpoints of its KV events",
    "peers": "of other heads before the same engines",
}
FIELDS = tuple(f"route.{name}" for name in LISTS)


def options(verb: ArgumentParser) -> None:
    for name, about in LISTS.items():
        what = "LIVE|REPLAY,…" if name == "events" else "URL,…"
        verb.add_argument(f"--{name}", metavar=what, help=f"{about}; the same as route.{name}=[…]")
    verb.add_argument("--detach", action="store_true", help="start it and return at once")


def route(args: Namespace) -> int:
    """Give an OpenAI endpoint before engines that run already, until it is ended."""
    config = replace(compose(list(_words(args)), args.config_dir), task=Task.serve)
    config = _with_files(resolve_route(config))
    config = placed(config, "route")
    engine(config.engine.name)  # its dialect is spoken
    layout = lay_out(config)
    return go(serve_run(config, say), config, layout, Launcher.local, detach=args.detach)


def _words(args: Namespace) -> Iterator[str]:
    """Yield the overrides; a list of URLs needs no brackets here."""
    for word in args.overrides:
        name, is_, value = word.partition("=")
        if "://" in name:
            hint = f"--workers {word}; several with commas and no spaces between them"
            raise ConfigError(f"{word} is neither an option nor FIELD=VALUE", hint=hint)
        bare = name in FIELDS and is_ and not value.startswith("[")
        yield _listed(name, value) if bare else word
    for name in LISTS:
        if (given := getattr(args, name)) is not None:
            yield _listed(f"route.{name}", given)


def _listed(name: str, value: str) -> str:
    parts = [part for each in value.split(",") if (part := each.strip())]
    return f"{name}={msgspec.json.encode(parts).decode()}"


def _with_files(config: Config) -> Config:
    """With paths that mean the same from any folder."""
    key = key_file("route.api_key_file", config.route.api_key_file)
    return replace(config, serve=files(config.serve), route=replace(config.route, api_key_file=key))
