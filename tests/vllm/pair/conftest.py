"""One prefill and one decode worker of real vLLM, shared by the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.unusual_bodies import CONTEXT
from tests.support.vllm import provisioned
from tests.support.vllm_serve import Served, serving


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The decode worker caches no prefixes, so that it pulls the blocks of every prompt."""
    words = (
        "topology=disaggregated",
        "router.conditional_disaggregation=false",
        f"engine.args.max-model-len={CONTEXT}",
        "engine.decode.args.enable-prefix-caching=false",
        "engine.args.enable-auto-tool-choice=true",
        "engine.args.tool-call-parser=hermes",
    )
    with serving(provisioned(), tmp_path_factory.mktemp("pair"), *words) as found:
        yield found
