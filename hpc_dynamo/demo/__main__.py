"""`python -m hpc_dynamo.demo`: a batch with one prefill and one decode worker on this machine.

It installs vLLM or SGLang for CPUs and a small model (`--engine simulator` needs neither). Then it
runs `hpc-dynamo batch` and shows some of the answers.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from hpc_dynamo.cli.command_line import main as hpc_dynamo
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.demo.engine_environment import DemoEngine
from hpc_dynamo.demo.next_steps import next_steps
from hpc_dynamo.demo.provision import provision
from hpc_dynamo.demo.provision_sglang import provision_sglang
from hpc_dynamo.errors import ExitCode, HpcDynamoError
from hpc_dynamo.printable import escape_controls

PROMPTS = Path(__file__).with_name("prompts.jsonl")
SHOWN_ANSWERS = 3
INSTALLERS: dict[str, Callable[[], DemoEngine | None]] = {
    "vllm": provision,
    "sglang": provision_sglang,
    "simulator": lambda: None,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code of the batch."""
    args = _parser().parse_args(argv)
    console = Console()
    try:
        engine = INSTALLERS[args.engine]()
    except HpcDynamoError as e:
        console.print(f"[bold red]error:[/] {escape(str(e))}", highlight=False)
        return e.exit_code
    except KeyboardInterrupt:
        console.print("\ninterrupted; run the same command again to resume")
        return ExitCode.interrupted
    arguments = batch_arguments(engine, args.overrides)
    code = hpc_dynamo(arguments)
    if code == 0:
        _show(_run_folder(arguments) / "output.jsonl", console)
        text = "\n".join(["", *next_steps(engine_overrides(engine))])
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hpc_dynamo.demo", description=__doc__)
    parser.add_argument("--engine", choices=INSTALLERS, default="vllm")
    parser.add_argument("overrides", nargs="*", help="FIELD=VALUE, as for hpc-dynamo batch")
    return parser


def batch_arguments(engine: DemoEngine | None, overrides: Sequence[str]) -> list[str]:
    """Return the arguments of the batch. `overrides` come last and take precedence."""
    arguments = ["batch", "topology=disaggregated", "cluster=local", "name=demo", "overwrite=true"]
    return [*arguments, f"input={PROMPTS}", *engine_overrides(engine), *overrides]


def engine_overrides(engine: DemoEngine | None) -> list[str]:
    """Return the overrides that select the engine of the demo; None is the simulator."""
    if engine is None:
        return ["engine=simulator"]
    python, model = f"engine.python={engine.python}", f"model.path={engine.model}"
    return [f"engine={engine.config}", python, model]


def _run_folder(arguments: Sequence[str]) -> Path:
    config = compose(arguments[1:])
    return Path(config.runs_dir) / config.name


def _show(output: Path, console: Console) -> None:
    console.print(f"\n{SHOWN_ANSWERS} of the answers in {output}:")
    for question, answer in islice(answers(output), SHOWN_ANSWERS):
        text = escape(escape_controls(answer))
        console.print(Panel(text, title=escape(question), title_align="left"))


def answers(output: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs of question and answer, in the order of the output file."""
    requests = map(_decoded, PROMPTS.read_bytes().splitlines())
    asked = {r["custom_id"]: r["body"]["messages"][-1]["content"] for r in requests}
    for line in map(_decoded, output.read_bytes().splitlines()):
        message = line["response"]["body"]["choices"][0]["message"]
        yield asked[line["custom_id"]], message["content"]


def _decoded(line: bytes) -> dict[str, Any]:
    return msgspec.json.decode(line, type=dict[str, Any])


if __name__ == "__main__":
    sys.exit(main())
