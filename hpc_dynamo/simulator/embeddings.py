"""/v1/embeddings: unit vectors made of the tokens' hash, the same for the same text."""

import base64
import math
import time
from array import array
from hashlib import shake_128
from typing import Any, Literal

import msgspec

from hpc_dynamo.simulator.api_error import Refused
from hpc_dynamo.simulator.prompts import Prompts, from_any

DIMENSIONS = 256


class EmbeddingRequest(msgspec.Struct):
    """Body of the request. Unknown fields are ignored."""

    input: Prompts
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    def body(self, request_id: str, model: str, max_model_len: int) -> dict[str, Any]:
        """The answer. Raises Refused for an input that is too long, or for the dimensions."""
        size = DIMENSIONS if self.dimensions is None else self.dimensions
        if not 1 <= size <= DIMENSIONS:
            what = f"dimensions must be between 1 and {DIMENSIONS}, got {size}"
            raise Refused(what, param="dimensions")
        inputs = from_any(self.input, max_model_len, "input")
        form = list if self.encoding_format == "float" else _base64
        data = [
            {"index": i, "object": "embedding", "embedding": form(vector(tokens, size))}
            for i, tokens in enumerate(inputs)
        ]
        count = sum(map(len, inputs))
        usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
        head = {"id": f"embd-{request_id}", "object": "list", "created": int(time.time())}
        return {**head, "model": model, "data": data, "usage": usage}


def vector(tokens: list[int], size: int) -> "array[float]":
    """`size` float32 values of length 1 together; fewer are the beginning of more, rescaled."""
    draw = shake_128(array("I", tokens).tobytes()).digest(size)
    values = [byte - 127.5 for byte in draw]
    norm = math.sqrt(sum(v * v for v in values))
    return array("f", [v / norm for v in values])


def _base64(values: "array[float]") -> str:
    return base64.b64encode(values.tobytes()).decode()  # little endian, as are all our machines
