"""`python -m hpc_dynamo.demo`: a batch through one prefill and one decode worker, here.

Installs vLLM's CPU build and a small model first (`--engine simulator` needs neither), then
calls the same `batch` verb that everybody uses, and shows some of the answers.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from hpc_dynamo.cli.command_line import main as hpc_dynamo
from hpc_dynamo.cli.compose import compose
from hpc_dynamo.demo.provision import DemoEngine, provision
from hpc_dynamo.errors import HpcDynamoError

PROMPTS = Path(__file__).with_name("prompts.jsonl")
SHOWN = 3  # answers
ENGINES = ("vllm", "simulator")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code is the batch's."""
    args = _parser().parse_args(argv)
    console = Console()
    try:
        engine = provision() if args.engine == "vllm" else None
    except HpcDynamoError as e:
        console.print(f"[bold red]error:[/] {escape(str(e))}", highlight=False)
        return e.exit_code
    except KeyboardInterrupt:
        console.print("\ninterrupted; the same command goes on where this one stopped")
        return 130
    words = batch_arguments(engine, args.overrides)
    code = hpc_dynamo(words)
    if code == 0:
        _show(_run_folder(words) / "output.jsonl", console)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hpc_dynamo.demo", description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, default="vllm")
    parser.add_argument("overrides", nargs="*", help="FIELD=VALUE, as for hpc-dynamo batch")
    return parser


def batch_arguments(engine: DemoEngine | None, overrides: Sequence[str]) -> list[str]:
    """The command line of the batch; `overrides` come last and win."""
    words = ["batch", "topology=disaggregated", "cluster=local", "name=demo", "overwrite=true"]
    words.append(f"input={PROMPTS}")
    if engine is None:
        words.append("engine=simulator")
    else:
        words += ["engine=vllm-cpu", f"engine.python={engine.python}"]
        words.append(f"model.path={engine.model}")
    return [*words, *overrides]


def _run_folder(words: Sequence[str]) -> Path:
    config = compose(words[1:])
    return Path(config.runs_dir) / config.name


def _show(output: Path, console: Console) -> None:
    console.print(f"\n{SHOWN} of the answers in {output}:")
    for question, answer in islice(answers(output), SHOWN):
        console.print(Panel(escape(answer), title=escape(question), title_align="left"))


def answers(output: Path) -> Iterator[tuple[str, str]]:
    """Pairs of question and answer, in the order of the output file."""
    requests = map(_decoded, PROMPTS.read_bytes().splitlines())
    asked = {r["custom_id"]: r["body"]["messages"][-1]["content"] for r in requests}
    for line in map(_decoded, output.read_bytes().splitlines()):
        message = line["response"]["body"]["choices"][0]["message"]
        yield asked[line["custom_id"]], message["content"]


def _decoded(line: bytes) -> dict[str, Any]:
    return msgspec.json.decode(line, type=dict[str, Any])


if __name__ == "__main__":
    sys.exit(main())
