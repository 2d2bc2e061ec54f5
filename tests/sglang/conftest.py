"""Workers of real SGLang, shared by the tests of this folder: a pair, and one that does both."""

from collections.abc import Iterator

import pytest

from tests.support.unusual_bodies import CONTEXT
from tests.support.vllm import provisioned_sglang
from tests.support.vllm_serve import Served, serving

WORDS = (f"engine.args.context-length={CONTEXT}", "engine.args.tool-call-parser=hermes")


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ("topology=disaggregated", *WORDS)
    with serving(provisioned_sglang(), tmp_path_factory.mktemp("pair"), *words) as found:
        yield found


@pytest.fixture(scope="package")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    words = ("topology=aggregated", *WORDS)
    with serving(provisioned_sglang(), tmp_path_factory.mktemp("alone"), *words) as found:
        yield found
