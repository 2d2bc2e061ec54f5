"""Prompts that end an SGLang engine.

SGLang 0.5.23 checks neither token ids nor the elements of a list of prompts. An id outside the
vocabulary or a prompt without tokens raises an exception in its scheduler, which then ends with
every request on it. It also answers `n: -1`, and its error for `n: 0` does not name the field.
Other engines refuse such requests with status 400.
"""

import json
import os
from pathlib import Path
from typing import Any

from hpc_dynamo.config import Config
from hpc_dynamo.engines.pd_protocol import COMPLETIONS, Body, field_value
from hpc_dynamo.model_files import model_source

FIELDS = {COMPLETIONS: "prompt", "/v1/embeddings": "input"}


class SglangPromptCheck:
    """Checks the prompts of requests for one model."""

    def __init__(self, vocabulary: int = 0) -> None:
        """`vocabulary` is the number of token ids, 0 if it is not known."""
        self._vocabulary = vocabulary

    def refusal(self, path: str, body: Body) -> str:
        """Return why this request must not reach SGLang; empty if it may."""
        answers = field_value(body.get("n"))
        if isinstance(answers, int) and answers < 1:
            return f"n must be at least 1, got {answers:d}"
        field = FIELDS.get(path, "")
        prompt = field_value(body.get(field)) if field else None
        if not isinstance(prompt, list | tuple):
            return ""
        if any(element in ("", []) for element in prompt):
            return f"{field}: an element of the list is empty"
        wrong = next((token for token in _ids(prompt) if not self._is_known(token)), None)
        if wrong is None:
            return ""
        what = f"{field}: token id {wrong} is out of the vocabulary"
        return f"{what} of {self._vocabulary} tokens" if self._vocabulary else what

    def _is_known(self, token: int) -> bool:
        return token >= 0 and (not self._vocabulary or token < self._vocabulary)


def _ids(prompt: Any) -> list[int]:
    """Return the token ids of one prompt or of several."""
    lists = [element if isinstance(element, list) else [element] for element in prompt]
    return [token for ids in lists for token in ids if isinstance(token, int)]


def sglang_prompt_check(config: Config) -> SglangPromptCheck:
    """Return the check for the model of this configuration."""
    folder = model_source(config, os.environ).path if config.model.path else None
    return SglangPromptCheck(vocabulary_size(folder) if folder else 0)


def vocabulary_size(folder: Path) -> int:
    """Return the number of token ids by a model's `config.json`, 0 if it is not given."""
    try:
        known = json.loads((folder / "config.json").read_bytes())
        size = known.get("vocab_size") or known.get("text_config", {}).get("vocab_size")
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0
    return size if isinstance(size, int) else 0
