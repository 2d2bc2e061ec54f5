"""Records what TensorRT-LLM's published source accepts.

Run it from the folder of the record:
`python -m tests.unit.engines.contract.record_trtllm CHECKOUT "source" > trtllm.json`.
The source is parsed, never imported: that needs a GPU.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SERVE = "tensorrt_llm/commands/serve.py"
LLM_ARGS = "tensorrt_llm/llmapi/llm_args.py"
PROTOCOL = "tensorrt_llm/serve/openai_protocol.py"
COLLECTOR = "tensorrt_llm/metrics/collector.py"
VERSION = "tensorrt_llm/version.py"

MODELS = {
    LLM_ARGS: (
        "TorchLlmArgs",
        "CacheTransceiverConfig",
        "CudaGraphConfig",
        "KvCacheConfig",
        "MTPDecodingConfig",
        "MoeConfig",
        "MoeLoadBalancerConfig",
    ),
    PROTOCOL: ("DisaggregatedParams", "CompletionRequest", "ChatCompletionRequest"),
}


def options(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Every name of every option of `trtllm-serve serve`, and its kind."""
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "serve")
    for made in function.decorator_list:
        if isinstance(made, ast.Call) and ast.unparse(made.func) == "click.option":
            given = {k.arg: ast.unparse(k.value) for k in made.keywords}
            kind = "flag" if given.get("is_flag") == "True" else "value"
            kind = "list" if given.get("multiple") == "True" else kind
            names = [n.value for n in made.args if isinstance(n, ast.Constant)]
            yield from ((n, kind) for n in names if isinstance(n, str) and n.startswith("--"))


def fields(tree: ast.Module, model: str) -> Iterator[str]:
    """Yield the fields of a pydantic model and of its bases in the same file."""
    found = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == model)
    for each in found:
        for base in each.bases:
            yield from fields(tree, ast.unparse(base))
        for line in each.body:
            if isinstance(line, ast.AnnAssign) and not ast.unparse(line.target).startswith("_"):
                yield ast.unparse(line.target)


def metrics(tree: ast.Module) -> Iterator[str]:
    """Names of the metrics that are made, as `name=self.metric_prefix + "..."`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "name":
            match node.value:
                case ast.BinOp(right=ast.Constant(value=str(name))):
                    yield f"trtllm_{name}"


def record(checkout: Path, source: str) -> dict[str, Any]:
    paths = (SERVE, LLM_ARGS, PROTOCOL, COLLECTOR)
    trees = {path: ast.parse((checkout / path).read_text()) for path in paths}
    return {
        "source": source,
        "version": (checkout / VERSION).read_text().rpartition("__version__ = ")[2].strip(' "\n'),
        "sha256": {p: hashlib.sha256((checkout / p).read_bytes()).hexdigest() for p in paths},
        "options": dict(options(trees[SERVE])),
        "fields": {
            model: sorted(set(fields(trees[path], model)))
            for path, models in MODELS.items()
            for model in models
        },
        "metrics": sorted(set(metrics(trees[COLLECTOR]))),
    }


if __name__ == "__main__":
    json.dump(record(Path(sys.argv[1]), sys.argv[2]), sys.stdout, indent=1)
    print()
