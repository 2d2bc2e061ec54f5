"""One prefill and one decode worker of real SGLang, shared by the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.vllm import provisioned_sglang
from tests.support.vllm_serve import Served, serving


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("sglang")
    with serving(provisioned_sglang(), folder, "topology=disaggregated") as found:
        yield found
