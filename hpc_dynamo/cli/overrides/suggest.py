"""The overrides that an option of another tool stands for: `model.path=X` for `--model X`.

Used for unknown options (`--model X`) and for names that are not fields (`partition=gpu`).
"""

from collections.abc import Iterable, Sequence

from hpc_dynamo.cli.overrides.field_lookup import leaves
from hpc_dynamo.config import Role
from hpc_dynamo.engines import ENGINES
from hpc_dynamo.engines.option_names import flags, values
from hpc_dynamo.errors import quoted_override

# Names that vLLM, SGLang and Slurm users know, and the fields that they mean here.
FIELDS = {
    "model": "model.path",
    "model_path": "model.path",
    "tokenizer": "model.path",
    "served_model_name": "model.name",
    "max_num_seqs": "engine.max_num_seqs",
    "max_running_requests": "engine.max_num_seqs",
    "api_key_file": "serve.api_key_file",
    "ssl_certfile": "serve.tls_cert",
    "ssl_keyfile": "serve.tls_key",
    "gpus": "cluster.gpus_per_node",
    "cpus_per_task": "cluster.cpus_per_node",
    "input_file": "input",
    "job_name": "name",
    "N": "topology.nodes",
    "nnodes": "topology.nodes",
    "p": "cluster.slurm.partition",
    "A": "cluster.slurm.account",
    "t": "cluster.slurm.time",
    "q": "cluster.slurm.qos",
    "C": "cluster.slurm.constraint",
    "J": "name",
    "i": "input",
}

# Names of fields that each pool of workers has.
POOL = {
    "workers": "workers",
    **{
        name: f"{kind}_parallel"
        for kind, short in (("tensor", "tp"), ("pipeline", "pp"), ("data", "dp"))
        for name in (f"{kind}_parallel", f"{kind}_parallel_size", short, f"{short}_size")
    },
}

# Options that take more than a value to translate.
EXAMPLES = {
    "api_key": "serve.api_key_file=FILE, a file that holds the key",
    "lora_modules": "model.lora.NAME=PATH",
    "lora_paths": "model.lora.NAME=PATH",
}

# Options of the engines that are never suggested: the toolkit computes them, or they hold secrets
# that every user of a node could read on command lines.
UNSUITABLE = frozenset(
    ("config", "hf-token", "admin-api-key", "ssl-keyfile-password"),
).union(*(adapter.controlled_options for adapter in ENGINES.values()))

BODY = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k")  # request fields

# The last part of a field's name, but the option of other tools is an address.
OTHER_MEANING = frozenset({"router.tier_cost.host"})

# Sections that only some verbs read. The verb is empty if it is not known.
SECTIONS = {
    "batch": ("batch", "plan", "doctor", ""),
    "serve": ("serve", "plan", "doctor", "route", ""),
    "route": ("route",),
    "simulate": ("simulate",),
}


def suggestion(name: str, value: str, verb: str, roles: Iterable[Role]) -> str:
    """Return overrides for a shell, or an empty text if no field or engine option has this name.

    `value` is empty if the option has none. `verb` is empty if unknown. `roles` are those of the
    pools in use.
    """
    plain = name.replace("-", "_")
    if plain in EXAMPLES:
        return EXAMPLES[plain]
    found = _fields(plain, verb, roles)
    if found:
        return " ".join(_assigned(field, value) for field in found)
    return _engine_option(plain.replace("_", "-"), value)


def _fields(plain: str, verb: str, roles: Iterable[Role]) -> Sequence[str]:
    if plain in BODY:
        return [f"batch.body_defaults.{plain}"] if verb == "batch" else []
    if plain in POOL:
        return [f"topology.{role}.{POOL[plain]}" for role in roles]
    old_names, known = leaves(), sorted(leaves(), key=lambda field: (field.count("."), field))
    if plain in known:
        return [plain]
    if plain in FIELDS:
        return [FIELDS[plain]]
    usable = [field for field in known if verb in SECTIONS.get(field.partition(".")[0], (verb,))]
    named = (field for field in usable if field.rpartition(".")[2] == plain)
    current = [field for field in named if field not in OTHER_MEANING]
    return (current or [field for field in usable if old_names[field] == plain])[:1]


def _engine_option(name: str, value: str) -> str:
    if name.startswith("no-") and name[3:] in flags():
        return f"engine.args.{name[3:]}=false"
    if name in flags() - UNSUITABLE:
        return _assigned(f"engine.args.{name}", value or "true")
    return _assigned(f"engine.args.{name}", value) if name in values() - UNSUITABLE else ""


def _assigned(field: str, value: str) -> str:
    return quoted_override(field, value) if value else f"{field}=VALUE"
