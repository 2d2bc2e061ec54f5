"""Options that hints of known failures name exist in the engine."""

import re
from collections.abc import Mapping

import pytest

from hpc_dynamo.engines.sglang import adapter as sglang
from hpc_dynamo.engines.trtllm import adapter as trtllm
from hpc_dynamo.engines.vllm import adapter as vllm
from tests.unit.engines.contract.accepted import newest

TABLES: dict[str, Mapping[str, str]] = {
    "sglang": sglang.KNOWN_FAILURES,
    "trtllm": trtllm.KNOWN_FAILURES,
    "vllm": vllm.KNOWN_FAILURES,
}
FIELDS = {"extra"}  # not an option, but fields of TensorRT-LLM's options file


@pytest.mark.parametrize("name", TABLES)
def test_options_named_in_hints_exist(name: str) -> None:
    recorded = newest(name).by_name()
    named = set(re.findall(r"engine\.args\.([\w-]+)", " ".join(TABLES[name].values())))
    assert named
    assert {f"--{option}" for option in named - FIELDS} <= set(recorded)
