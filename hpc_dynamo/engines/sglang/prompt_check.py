"""Prompts and parameters that end an SGLang engine.

SGLang 0.5.23 checks neither token ids nor the elements of a list of prompts. An id outside the
vocabulary, a prompt without tokens or too many log-probabilities raise an exception in its
scheduler. It then ends with every request on it. SGLang also answers `n: -1`, and its error for
`n: 0` does not name the field. Other engines refuse such requests with status 400.

SGLang reads `1e9`, `"7"` and `true` as integers. Here only JSON integers are token ids.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hpc_dynamo.config import Config
from hpc_dynamo.engines.pd_protocol import COMPLETIONS, MAX_IDS, Body, field_value
from hpc_dynamo.model_files import model_source
from hpc_dynamo.regular_file import MAX_RECORD_BYTES, read_regular_file

# Fields with prompts, as texts or token ids, by path. `input_ids` counts on every path.
PROMPTS = {
    COMPLETIONS: ("prompt",),
    "/v1/embeddings": ("input",),
    "/v1/classify": ("input",),
    "/v1/score": ("query", "items"),
    "/v1/rerank": ("query", "documents"),
    "/generate": ("text",),
    "/encode": ("text",),
    "/classify": ("text",),
}
INPUT_IDS = "input_ids"
# SGLang itself refuses an empty prompt here.
CHECKS_EMPTY = frozenset({COMPLETIONS, "/v1/embeddings"})
# Fields with token ids that are no prompt, on every path; may be lists of lists.
IDS = ("label_token_ids", "stop_token_ids", "token_ids_logprob")
# Numbers of alternatives to each token; a list of prompts may have a list of them.
ALTERNATIVES = ("logprobs", "top_logprobs", "top_logprobs_num")
MAX_ALTERNATIVES = 128  # a prefill worker has a buffer of this size (disaggregation/utils.py)
PARAMETERS = "sampling_params"  # an object or a list of them, on SGLang's own paths


class SglangPromptCheck:
    """Checks the prompts of requests for one model."""

    def __init__(self, vocabulary: int = 0) -> None:
        """`vocabulary` is the number of token ids, 0 if it is not known."""
        self._vocabulary = vocabulary

    def refusal(self, path: str, body: Body) -> str:
        """Return why this request must not reach SGLang; empty if it may."""
        for field in (*PROMPTS.get(path, ()), INPUT_IDS):
            if _many_ids(body.get(field)):
                return f"{field} has more than {MAX_IDS} token ids"
            prompt = field_value(body.get(field))
            if prompt in ("", []) and path not in CHECKS_EMPTY:
                return f"{field} is empty"
            if isinstance(prompt, list | tuple) and (wrong := self._wrong_prompt(prompt)):
                return f"{field}: {wrong}"
        parameters = field_value(body.get(PARAMETERS))
        several = parameters if isinstance(parameters, list | tuple) else [parameters]
        objects = (each for each in several if isinstance(each, dict))
        return next(filter(None, map(self._wrong_parameters, (body, *objects))), "")

    def _wrong_parameters(self, body: Body) -> str:
        answers = _integer(field_value(body.get("n")))
        if answers is not None and answers < 1:
            return f"n must be at least 1, got {answers}"
        most = min(MAX_ALTERNATIVES, self._vocabulary or MAX_ALTERNATIVES)
        for field in ALTERNATIVES:
            value = field_value(body.get(field))
            several = value if isinstance(value, list | tuple) else [value]
            if any((_integer(each) or 0) > most for each in several):
                return f"{field} must be at most {most}"
        for field in IDS:
            value = field_value(body.get(field))
            if isinstance(value, list | tuple):
                lists = [each for each in value if isinstance(each, list)]
                flat = [each for each in value if each is not None and not isinstance(each, list)]
                if wrong := next(filter(None, map(self._wrong_ids, (flat, *lists))), ""):
                    return f"{field}: {wrong}"
        return ""

    def _wrong_prompt(self, prompt: Sequence[Any]) -> str:
        """Return what is wrong with a list of texts, of token ids or of lists of them."""
        types = set(map(type, prompt))
        if list in types:
            if types != {list}:
                return "the list has elements of several types"
            if [] in prompt:
                return "an element of the list is empty"
            return next(filter(None, map(self._wrong_ids, prompt)), "")
        if types & {int, float, bool}:
            return self._wrong_ids(prompt)
        return "an element of the list is empty" if "" in prompt else ""

    def _wrong_ids(self, ids: Sequence[Any]) -> str:
        if not ids:
            return ""
        if set(map(type, ids)) != {int}:
            return "token ids must be integers"
        lowest, highest = min(ids), max(ids)
        if lowest >= 0 and not (self._vocabulary and highest >= self._vocabulary):
            return ""
        what = f"token id {lowest if lowest < 0 else highest} is out of the vocabulary"
        return f"{what} of {self._vocabulary} tokens" if self._vocabulary else what


def _many_ids(value: Any) -> bool:
    """Return True if the ids are too many to check each: it would take seconds."""
    if not isinstance(value, msgspec.Raw):
        return False
    content = bytes(value)
    return content.startswith(b"[") and content.count(b",") >= MAX_IDS


def _integer(value: Any) -> int | None:
    """Return a number as SGLang reads it, None if it is no integer."""
    if not isinstance(value, bool | int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def sglang_prompt_check(config: Config) -> SglangPromptCheck:
    """Return the check for the model of this configuration."""
    folder = model_source(config, os.environ).path if config.model.path else None
    return SglangPromptCheck(vocabulary_size(folder) if folder else 0)


def vocabulary_size(folder: Path) -> int:
    """Return the number of token ids by a model's `config.json`, 0 if it is not given."""
    try:
        known = json.loads(read_regular_file(folder / "config.json", MAX_RECORD_BYTES))
        size = known.get("vocab_size") or known.get("text_config", {}).get("vocab_size")
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0
    return size if isinstance(size, int) else 0
