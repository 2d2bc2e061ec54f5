"""`hpc-dynamo route`: the endpoint of `serve` in front of engines that run already."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace

import msgspec

from hpc_dynamo.cli.arguments import add_detach, add_overrides
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.cli.launch_checks import Checked
from hpc_dynamo.cli.launch_run import launch_run
from hpc_dynamo.cli.render.console import print_line
from hpc_dynamo.cli.run_folder import serve_run
from hpc_dynamo.cli.task_config import key_file, resolve_run, with_absolute_files
from hpc_dynamo.config import Config, Launcher, Task, resolve_route
from hpc_dynamo.engines import engine
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.topology import plan as lay_out

EXAMPLES = """\
  hpc-dynamo route --workers http://gpu1:8000,http://gpu2:8000
  hpc-dynamo route --workers http://gpu1:8000,http://gpu2:8000 route.api_key_file=engines.key \\
      serve.host=0.0.0.0 serve.port=8080 model.path=/shared/llama model.name=llama
  hpc-dynamo route --prefill http://gpu1:8000 --decode http://gpu2:8000,http://gpu3:8000
  hpc-dynamo route --workers http://gpu1:8000 --events 'tcp://gpu1:5557|tcp://gpu1:5558'"""
NOTES = """\
It starts with the engines that are ready and adds the others later. Ctrl-C ends the endpoint
only. `model.path` enables KV-aware routing (its tokenizer is needed); without it, requests are
routed by load. `engine.name` selects the protocol between prefill and decode engines."""

LISTS = {
    "workers": "aggregated engines",
    "prefill": "prefill engines",
    "decode": "decode engines; they pull the KV cache",
    "events": "ZMQ endpoints of KV events of each engine, LIVE|REPLAY",
    "peers": "other routers in front of the same engines",
}
FIELDS = tuple(f"route.{name}" for name in LISTS)


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    for name, about in LISTS.items():
        value = "LIVE|REPLAY,…" if name == "events" else "URL,…"
        parser.add_argument(f"--{name}", metavar=value, help=f"{about} (route.{name}=[…])")
    add_detach(parser)


def check(args: Namespace) -> None:
    lay_out(_config(args))


def run(args: Namespace) -> int:
    config = resolve_run(_with_absolute_files(_config(args)), "route")
    engine(config.engine.name)  # raises for a name that is not an engine
    checked = Checked(config, lay_out(config), Launcher.local)
    return launch_run(serve_run(config, print_line), checked, detach=args.detach)


def _config(args: Namespace) -> Config:
    config = compose(list(_overrides(args)), args.config_dir)
    return resolve_route(replace(config, task=Task.serve))


def _overrides(args: Namespace) -> Iterator[str]:
    """Yield the overrides. A list of URLs needs no brackets here."""
    for word in args.overrides:
        name, is_, value = word.partition("=")
        if "://" in name:
            hint = f"--workers {word}; several with commas and no spaces between them"
            raise ConfigError(f"{word} is neither an option nor FIELD=VALUE", hint=hint)
        bare = name in FIELDS and is_ and not value.startswith("[")
        yield _as_list(name, value) if bare else word
    for name in LISTS:
        if (given := getattr(args, name)) is not None:
            yield _as_list(f"route.{name}", given)


def _as_list(field: str, value: str) -> str:
    parts = [part for each in value.split(",") if (part := each.strip())]
    return f"{field}={msgspec.json.encode(parts).decode()}"


def _with_absolute_files(config: Config) -> Config:
    key = key_file("route.api_key_file", config.route.api_key_file)
    serve, route = with_absolute_files(config.serve), replace(config.route, api_key_file=key)
    return replace(config, serve=serve, route=route)
