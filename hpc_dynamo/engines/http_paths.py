"""Policy: HTTP paths of an engine that clients may use through the endpoint or in a batch.

Engines list their paths in `/openapi.json`, inference next to administration: sleep, weight
updates, remote procedure calls, profiling, cache resets, LoRA loading. A path is forwarded only if
none of its words belongs to administration and one of them belongs to inference. A new path is
therefore not forwarded until one of its words is listed here.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

METHODS = ("GET", "POST", "DELETE")
VERSION = "/version"

# prose: ignore (word list)
_INFERENCE = """
chat classify completion completions conversations detokenize edits embed embedding embeddings
encode generate generations generative images messages moderations pooling rerank render responses
score scores scoring speech tokenize transcriptions translations videos voices
"""
# Words in vLLM 0.32, SGLang 0.5.23 and TensorRT-LLM 1.3, and likely ones in later versions.
# prose: ignore (word list)
_ADMINISTRATION = """
abort adapter adapters add admin awake cache checkpoint clear close collective config configure
continue debug delete destroy disable docs dump elastic enable ep events expert experts file flush
freeze gc get health healthz hicache info init invocations is kill list live livez load loads log
logging lora memory metrics offload open openapi pause paused pd perf ping process profile
prometheus queue ready readyz redoc release reload remove reset restart resume role rpc scale
scaling server session sessions set shutdown sleep sleeping start state statistics stats status
steer step stop suspend switch trace tracing transfer transfers unload update vertex wake wakeup
warmup weight weights worker workers
"""
INFERENCE = frozenset(_INFERENCE.split())
ADMINISTRATION = frozenset(_ADMINISTRATION.split())
_WORDS = re.compile(r"[a-z]+")
_PARAMETER = re.compile(r"\{[^{}/]*\}")
# A proxy or an engine might read `..` and `%2F` as another path.
_ID = "([A-Za-z0-9_~:-][A-Za-z0-9_.~:-]*)"
_PLAIN = re.compile(r"/[A-Za-z0-9_./{}:-]{1,200}\Z")


def is_inference(path: str, method: str = "POST") -> bool:
    """Return True if requests to this path of an engine may be forwarded for a client.

    `path` may be a template of an OpenAPI document: `/v1/responses/{response_id}`.
    """
    if method not in METHODS or not _PLAIN.match(path) or ".." in path or "//" in path:
        return False
    if path == VERSION:
        return method == "GET"
    if method == "DELETE" and not _PARAMETER.search(path):
        return False
    words = set(_WORDS.findall(_PARAMETER.sub("", path).lower()))
    return not words & ADMINISTRATION and bool(words & INFERENCE)


def forwardable(operations: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the (method, path) pairs that may be forwarded, each as `POST /v1/rerank`."""
    allowed = {f"{m.upper()} {p}" for m, p in operations if is_inference(p, m.upper())}
    return tuple(sorted(allowed))


@lru_cache(maxsize=256)
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(_ID.join(map(re.escape, _PARAMETER.split(template))))


def path_parameters(template: str, path: str) -> tuple[str, ...]:
    """Return the parameters of a path by its template, `/v1/responses/{id}`; empty if the path
    does not match the template."""
    found = _pattern(template).fullmatch(path)
    return found.groups() if found else ()
