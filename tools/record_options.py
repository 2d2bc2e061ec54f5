"""Print the options of an engine's server, from its own parser.

    /env/bin/python tools/record_options.py vllm > hpc_dynamo/engines/contract/vllm-VERSION.json
    /env/bin/python tools/record_options.py sglang > hpc_dynamo/engines/contract/sglang-VERSION.json

Run it with the Python of an environment that has the engine. It needs only the engine and the
standard library. A version of vLLM that is not installed can be recorded too: put the files of its
wheel on PYTHONPATH, and append `+cpu` to the version in its metadata. For vLLM's JSON options the
script also prints the fields of their classes.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

# Both engines give the media to both workers, and read them there: vLLM for their positions, SGLang
# for the number of tokens (srt/disaggregation/utils.py).
MEDIA = ["audio", "image", "video"]
VLLM_PARSERS = ("vllm.entrypoints.common.cli_args", "vllm.entrypoints.launchers.cli_args")


def record_option(action: argparse.Action, aliases: list[str]) -> dict[str, Any]:
    """Return the kind of an option, its other names and its choices."""
    kind = "flag" if action.nargs == 0 else "list" if action.nargs in ("+", "*") else "value"
    names = {"aliases": aliases} if aliases else {}
    choices = {"choices": sorted(map(str, action.choices))} if action.choices else {}
    return {"kind": kind, **names, **choices}


def vllm() -> tuple[str, argparse.ArgumentParser, dict[str, list[str]]]:
    """Return vLLM's version, the parser of its server and the fields of JSON options."""
    from vllm import __version__
    from vllm.config import EPLBConfig, KVEventsConfig, KVTransferConfig
    from vllm.config.compilation import CompilationConfig, PassConfig
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    classes = (CompilationConfig, EPLBConfig, KVEventsConfig, KVTransferConfig, PassConfig)
    fields = {c.__name__: sorted(f.name for f in dataclasses.fields(c)) for c in classes}
    for name in VLLM_PARSERS:
        try:
            parser = import_module(name).make_arg_parser(FlexibleArgumentParser())
        except ModuleNotFoundError:
            continue
        return __version__.partition("+")[0], parser, fields
    raise SystemExit(f"vLLM has none of the modules {', '.join(VLLM_PARSERS)}")


def sglang() -> tuple[str, argparse.ArgumentParser, dict[str, list[str]]]:
    """Return SGLang's version and the parser of its server."""
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"  # its modules look for a device
    from sglang import __version__
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return __version__, parser, {}


def lines(
    engine: str, version: str, options: dict[str, Any], fields: dict[str, list[str]]
) -> Iterator[str]:
    """Yield the record with one option a line, so that a difference is easy to read."""
    about: dict[str, Any] = {"engine": engine, "version": version, "source": "its own parser"}
    about["disaggregated_media"] = MEDIA
    yield f'{json.dumps(about)[:-1]}, "options": {{'
    yield ",\n".join(f"{json.dumps(n)}: {json.dumps(options[n])}" for n in sorted(options))
    yield '}, "fields": {'
    yield ",\n".join(f"{json.dumps(name)}: {json.dumps(names)}" for name, names in fields.items())
    yield "}}"


def main() -> None:
    engine = sys.argv[1]
    version, parser, fields = {"vllm": vllm, "sglang": sglang}[engine]()
    names: dict[argparse.Action, list[str]] = {}  # also those that vLLM 0.33 hides from its help
    for name, action in parser._option_string_actions.items():
        names.setdefault(action, []).append(name)
    options = {own[0]: record_option(a, own[1:]) for a, own in names.items() if a.dest != "help"}
    print("\n".join(lines(engine, version, options, fields)))


if __name__ == "__main__":
    main()
