"""Requests to /v1/embeddings. Equal texts have equal vectors, made from a hash of their tokens."""

import base64
import math
import time
from array import array
from hashlib import shake_128
from typing import Any, Literal

import msgspec

from hpc_dynamo.simulator.api_error import RequestRejected
from hpc_dynamo.simulator.prompts import PromptField, from_field

DIMENSIONS = 256


class EmbeddingRequest(msgspec.Struct):
    """Body of the request. Unknown fields are ignored."""

    input: PromptField
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def respond(self, request_id: str, model: str, max_model_len: int) -> dict[str, Any]:
        """Return the response. Raises RequestRejected for a long input or bad dimensions."""
        size = DIMENSIONS if self.dimensions is None else self.dimensions
        if not 1 <= size <= DIMENSIONS:
            what = f"dimensions must be between 1 and {DIMENSIONS}, got {size}"
            raise RequestRejected(what, "dimensions")
        inputs = from_field(self.input, max_model_len, "input")
        encode = list if self.encoding_format == "float" else _base64
        data = [
            {"index": i, "object": "embedding", "embedding": encode(embed(tokens, size))}
            for i, tokens in enumerate(inputs)
        ]
        count = sum(map(len, inputs))
        usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
        head = {"id": f"embd-{request_id}", "object": "list", "created": int(time.time())}
        return {**head, "model": model, "data": data, "usage": usage}


def embed(tokens: list[int], size: int) -> "array[float]":
    """Return a float32 vector of length 1. Smaller sizes are rescaled prefixes of larger ones."""
    digest = shake_128(array("I", tokens).tobytes()).digest(size)
    values = [byte - 127.5 for byte in digest]
    norm = math.sqrt(sum(v * v for v in values))
    return array("f", [v / norm for v in values])


def _base64(values: "array[float]") -> str:
    return base64.b64encode(values.tobytes()).decode()  # little endian, like every x86 and Arm host
