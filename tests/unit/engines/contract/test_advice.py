"""Options that hints of known failures name exist in the engine."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpc_dynamo.engines.sglang import adapter as sglang
from hpc_dynamo.engines.trtllm import adapter as trtllm
from hpc_dynamo.engines.vllm import adapter as vllm

TABLES: dict[str, Mapping[str, str]] = {
    "sglang": sglang.KNOWN_FAILURES,
    "trtllm": trtllm.KNOWN_FAILURES,
    "vllm": vllm.KNOWN_FAILURES,
}
FIELDS = {"extra"}  # not an option, but fields of TensorRT-LLM's options file


@pytest.mark.parametrize("name", TABLES)
def test_options_named_in_hints_exist(name: str) -> None:
    recorded = json.loads((Path(__file__).parent / f"{name}.json").read_text())["options"]
    named = set(re.findall(r"engine\.args\.([\w-]+)", " ".join(TABLES[name].values())))
    assert named
    assert {f"--{option}" for option in named - FIELDS} <= set(recorded)
