"""/score and /rerank in vLLM's form: cosines of the vectors of /v1/embeddings."""

import time
from typing import Any

import msgspec

from hpc_dynamo.simulator.api_error import Refused
from hpc_dynamo.simulator.embeddings import DIMENSIONS, vector
from hpc_dynamo.simulator.prompts import from_any

Texts = str | list[str]


class Document(msgspec.Struct):
    """A document of /rerank in its long form."""

    text: str


class ScoreRequest(msgspec.Struct):
    """Body of /score: one text against one or more, or pairs of two equally long lists."""

    text_1: Texts
    text_2: Texts
    model: str | None = None

    def body(self, request_id: str, model: str, max_model_len: int) -> dict[str, Any]:
        """Return the answer. Raises Refused."""
        one, two = _list(self.text_1), _list(self.text_2)
        if len(one) == 1:
            one *= len(two)
        if len(one) != len(two):
            raise Refused("Input lengths must be either 1:1, 1:N or N:N")
        scores, tokens = _cosines(one, two, max_model_len)
        data = [{"index": i, "object": "score", "score": s} for i, s in enumerate(scores)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        head = {"id": f"score-{request_id}", "object": "list", "created": int(time.time())}
        return {**head, "model": model, "data": data, "usage": usage}


class RerankRequest(msgspec.Struct):
    """Body of /rerank; the answer lists the documents nearest to the query first."""

    query: str
    documents: list[str | Document]
    top_n: int = 0
    model: str | None = None

    def body(self, request_id: str, model: str, max_model_len: int) -> dict[str, Any]:
        """Return the answer. Raises Refused."""
        texts = [d if isinstance(d, str) else d.text for d in self.documents]
        scores, tokens = _cosines([self.query] * len(texts), texts, max_model_len)
        best = sorted(range(len(texts)), key=lambda i: -scores[i])
        kept = [
            {"index": i, "document": {"text": texts[i]}, "relevance_score": scores[i]}
            for i in (best[: self.top_n] if self.top_n > 0 else best)
        ]
        usage = {"total_tokens": tokens, "prompt_tokens": tokens}
        return {"id": f"rerank-{request_id}", "model": model, "usage": usage, "results": kept}


def _list(texts: Texts) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _cosines(one: list[str], two: list[str], max_model_len: int) -> tuple[list[float], int]:
    """Return the cosine of each pair, and the number of tokens."""
    pairs = from_any([*one], max_model_len, "query"), from_any([*two], max_model_len, "documents")
    a, b = ([vector(tokens, DIMENSIONS) for tokens in side] for side in pairs)
    cosines = [sum(x * y for x, y in zip(v, w, strict=True)) for v, w in zip(a, b, strict=True)]
    return cosines, sum(len(tokens) for side in pairs for tokens in side)
