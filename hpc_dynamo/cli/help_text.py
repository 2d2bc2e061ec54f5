"""Texts of `--help` that no single verb owns. A test limits the first screen to 35 lines."""

from collections.abc import Mapping

from hpc_dynamo.errors import ExitCode

PROGRAM = "hpc-dynamo"

TOP_LEVEL = """\
usage: hpc-dynamo VERB [option ...] [FIELD=VALUE ...]
       hpc-dynamo help VERB

LLM serving and batch inference inside one Slurm job: an OpenAI endpoint, or a file of prompts.
On a machine without Slurm the same commands run locally.

verbs:
{verbs}

options:
  -h, --help     show this text
  -V, --version  show the version

examples:
  hpc-dynamo batch engine=simulator input=prompts.jsonl
  hpc-dynamo serve model.path=/shared/llama cluster.gpus_per_node=4

exit codes: {exit_codes}"""

# prose: ignore (a table)
OVERRIDES = """\
Overrides set fields of the configuration: FIELD=VALUE. Quote values for the shell only.
GROUP=FILE selects a file of conf/GROUP/, such as engine=vllm. Later arguments win.

engine and model:
  engine=vllm|vllm-cpu|sglang|trtllm|simulator
  engine.python=/env/bin/python              Python of the engine's environment
  engine.args.max-model-len=8192             any option of the engine
  engine.decode.args.max-num-batched-tokens=512   for the workers of one role
  engine.prefill.env.NAME=VALUE
  model.path=/shared/models/llama
  recipe=llama-70b-2p2d-vllm                 a model with a tested layout
  models.NAME.path=…  models.NAME.topology=…  models.NAME.engine.args.…=…   several models
layout:
  topology=aggregated|disaggregated
  topology.prefill.workers=2  topology.decode.tensor_parallel=4
  topology.decode.hardware=NAME  cluster.hardware.NAME.partition=…   mixed node types
cluster:
  cluster=auto|slurm|local
  cluster.gpus_per_node=4  cluster.slurm.partition=gpu  cluster.slurm.time=04:00:00
run:
  input=prompts.jsonl  name=my-run  runs_dir=/scratch/me/runs
  serve.port=8000  router=kv|least_loaded|round_robin
  planner=off|load|sla  planner.ttft_s=2  planner.itl_s=0.04

`hpc-dynamo plan --show` prints every field with its value. docs/reference/configuration.md
describes every field."""


def top_level(verbs: Mapping[str, str]) -> str:
    """Return the text of `hpc-dynamo --help`."""
    width = max(map(len, verbs)) + 2
    rows = (f"  {name:<{width}}{summary}" for name, summary in verbs.items())
    return TOP_LEVEL.format(verbs="\n".join(rows), exit_codes=exit_codes_line()) + "\n"


def verb_epilog(examples: str, notes: str) -> str:
    """Return the end of a verb's `--help`."""
    parts = (f"examples:\n{examples}", notes, f"exit codes: {exit_codes_line()}")
    return "\n\n".join(filter(None, parts))


def exit_codes_line() -> str:
    """Return the exit codes in one line."""
    names = (f"{code} {code.name.replace('_', ' ')}" for code in ExitCode)
    return ", ".join(names) + " (`help exit-codes`)"


def exit_codes_table() -> str:
    """Return the text of `hpc-dynamo help exit-codes`."""
    return "exit codes:\n" + "\n".join(f"  {code:<5}{code.meaning}" for code in ExitCode)


TOPICS = {"overrides": lambda: OVERRIDES, "exit-codes": exit_codes_table}
