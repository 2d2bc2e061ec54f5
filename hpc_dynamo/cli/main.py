"""`hpc-dynamo VERB [overrides]`: parse, call the verb, turn errors into exit codes."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hpc_dynamo.cli import verbs
from hpc_dynamo.errors import HpcDynamoError

DESCRIPTION = """\
LLM batch inference and serving inside one Slurm job: prefill and decode workers over the
nodes of an allocation, KV cache moved between them by NIXL. On a machine without Slurm the
same command runs locally."""

OVERRIDES = """\
overrides are Hydra's: FIELD=VALUE, or GROUP=FILE for a file of conf/GROUP/. The fields:
  engine=vllm|vllm-cpu|simulator    engine.args.max-model-len=8192 (any option of the engine)
  topology=aggregated|disaggregated topology.prefill.workers=2 topology.decode.tensor_parallel=4
  cluster=auto|slurm|local          cluster.slurm.partition=gpu cluster.slurm.time=04:00:00
  model.path=/shared/models/llama   input=prompts.jsonl   name=my-run   runs=/scratch/me/runs
`hpc-dynamo plan --show` prints all of them with their values."""

EXAMPLES = {
    "plan": """\
  hpc-dynamo plan engine=simulator topology.prefill.workers=2
  hpc-dynamo plan cluster.gpus_per_node=4 topology.prefill.pipeline_parallel=6
  hpc-dynamo plan --dry-run cluster.gpus_per_node=8 cluster.slurm.partition=gpu > job.sbatch""",
    "batch": """\
  hpc-dynamo batch engine=simulator input=prompts.jsonl
  hpc-dynamo batch input=prompts.jsonl model.path=/shared/llama cluster.gpus_per_node=4 \\
      topology.prefill.workers=2 topology.decode.workers=2 cluster.slurm.time=08:00:00
  the same command again goes on where the last attempt ended, however it ended""",
    "status": """\
  hpc-dynamo status                 the newest run below runs/
  hpc-dynamo status name=prompts    or the folder: hpc-dynamo status runs/prompts""",
    "stop": """\
  hpc-dynamo stop name=prompts      results so far stay, the same batch command resumes""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 trying again may help, 2 an unknown option or verb,
    3 trying again cannot help, 130 Ctrl-C."""
    args = _parse(argv)
    console = Console(stderr=True, soft_wrap=True)
    try:
        code: int = args.call(args)
        return code
    except HpcDynamoError as e:
        console.print(f"[bold red]error:[/] {escape(str(e))}", highlight=False)
        return e.exit_code
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options may stand among the overrides, which argparse alone does not allow in verbs."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unknown options: {' '.join(unknown)}")
    args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="hpc-dynamo",
        description=DESCRIPTION,
        formatter_class=form,
        epilog="examples:\n" + "\n".join(EXAMPLES.values()) + f"\n\n{OVERRIDES}",
    )
    parser.add_argument("--version", action="version", version=version("hpc-dynamo"))
    rows = parser.add_subparsers(required=True, metavar="VERB")
    for name, (call, summary) in verbs.VERBS.items():
        epilog = f"examples:\n{EXAMPLES[name]}\n\n{OVERRIDES}"
        verb = rows.add_parser(
            name, help=summary, description=summary, epilog=epilog, formatter_class=form
        )
        verb.set_defaults(call=call)
        _arguments(name, verb)
    return parser


def _arguments(name: str, verb: argparse.ArgumentParser) -> None:
    verb.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="FIELD=VALUE, see below")
    verb.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="more files for the groups of conf/"
    )
    if name == "plan":
        verb.add_argument("--dry-run", action="store_true", help="print the sbatch script instead")
        verb.add_argument("--show", action="store_true", help="print the whole configuration")
        verb.add_argument(
            "--verb", default="batch", choices=["batch"], help="what the script is to run"
        )
    if name == "batch":
        verb.add_argument("--detach", action="store_true", help="submit and return at once")
