"""Command-line options: paths, and the override that an unknown option probably meant, such as
`model.path=X` for `--model X`."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from hpc_dynamo.cli.overrides.schema import leaves

# Names that vLLM, SGLang and Slurm users know, and the fields that they mean here.
FIELDS = {
    "model": "model.path",
    "model_path": "model.path",
    "tokenizer": "model.path",
    "served_model_name": "model.name",
    "tensor_parallel_size": "topology.aggregated.tensor_parallel",
    "tp": "topology.aggregated.tensor_parallel",
    "tp_size": "topology.aggregated.tensor_parallel",
    "pipeline_parallel_size": "topology.aggregated.pipeline_parallel",
    "data_parallel_size": "topology.aggregated.data_parallel",
    "max_num_seqs": "engine.max_num_seqs",
    "max_running_requests": "engine.max_num_seqs",
    "api_key_file": "serve.key_file",
    "ssl_certfile": "serve.tls_cert",
    "ssl_keyfile": "serve.tls_key",
    "gpus": "cluster.gpus_per_node",
    "cpus_per_task": "cluster.cpus_per_node",
    "input_file": "input",
    "job_name": "name",
    "N": "topology.nodes",
    "p": "cluster.slurm.partition",
    "A": "cluster.slurm.account",
    "t": "cluster.slurm.time",
    "q": "cluster.slurm.qos",
    "C": "cluster.slurm.constraint",
    "J": "name",
    "i": "input",
}


def path(text: str) -> Path:
    """Type of an option that names a file: a shell does not expand `~` in `--option=~/file`."""
    return Path(text).expanduser() if text.startswith("~/") else Path(text)


def instead(argv: Sequence[str], option: str) -> str:
    """Return the override that the unknown `option` probably meant."""
    name, is_, value = option.partition("=")
    if not is_:
        value = _next(argv, option)
    field = _field(name.lstrip("-"))
    if field.startswith("engine.args.") and not value:
        value = "true"
    return shlex.quote(f"{field}={value}") if value else f"{field}=VALUE"


def _next(argv: Sequence[str], option: str) -> str:
    """Return the argument after an option, unless it is an option or an override itself."""
    after = list(argv[argv.index(option) + 1 :][:1]) if option in argv else []
    return next((word for word in after if not word.startswith("-") and "=" not in word), "")


def _field(option: str) -> str:
    """Return the field of the same name as an option, else the engine's option."""
    plain = option.replace("-", "_")
    known = sorted(leaves(), key=lambda name: (name.count("."), name))
    if plain in known:
        return plain
    if plain in FIELDS:
        return FIELDS[plain]
    near = (name for name in known if name.rpartition(".")[2] == plain)
    return next(near, f"engine.args.{option}")
