"""Print what TensorRT-LLM's published source accepts.

    python -m tools.record_trtllm CHECKOUT "source" > trtllm-VERSION.json

The source is parsed, never imported: that needs a GPU. Options come from the decorators of
`trtllm-serve serve`, or, if these are computed, from the project's own reference of them.
"""

import ast
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

SERVE = "tensorrt_llm/commands/serve.py"
LLM_ARGS = "tensorrt_llm/llmapi/llm_args.py"
PROTOCOL = "tensorrt_llm/serve/openai_protocol.py"
COLLECTOR = "tensorrt_llm/metrics/collector.py"
VERSION = "tensorrt_llm/version.py"
REFERENCE = "tests/unittest/api_stability/references/trtllm_serve_cli.yaml"

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


def options(tree: ast.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every option of `trtllm-serve serve`, with its kind and its other names."""
    (function,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "serve")
    for made in function.decorator_list:
        if isinstance(made, ast.Call) and ast.unparse(made.func) == "click.option":
            given = {k.arg: ast.unparse(k.value) for k in made.keywords}
            names = [n.value for n in made.args if isinstance(n, ast.Constant)]
            multiple, flag = (given.get(word) == "True" for word in ("multiple", "is_flag"))
            yield option([str(name) for name in names], multiple=multiple, flag=flag)


def referenced_options(reference: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the options in the reference that the project compares with its command line."""
    for each in reference["commands"]["serve"]["options"].values():
        yield option(each["flags"], multiple=each["multiple"], flag=each["is_flag"])


def option(names: Sequence[str], *, multiple: bool, flag: bool) -> tuple[str, dict[str, Any]]:
    kind = "list" if multiple else "flag" if flag else "value"
    own, *others = (name for name in names if name.startswith("--"))
    return own, {"kind": kind, **({"aliases": others} if others else {})}


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
    reference = checkout / REFERENCE
    found = (
        referenced_options(yaml.safe_load(reference.read_text()))
        if reference.exists()
        else options(trees[SERVE])
    )
    return {
        "engine": "trtllm",
        "version": (checkout / VERSION).read_text().rpartition("__version__ = ")[2].strip(' "\n'),
        "source": source,
        # The decode worker gets token ids without media. 1.4 adds the positions of mRoPE models, as
        # a handle that is valid on one node; 1.3 has no such field (llmapi/llm.py, `_preprocess`).
        "disaggregated_media": [],
        "options": dict(sorted(found)),
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
