"""Two shared runs, one per topology, with a tokenizer for routing."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.serving.served import Served, serving
from tests.support.tiny_models import byte_tokenizer


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model folder whose tokens are bytes, for routing."""
    return byte_tokenizer(tmp_path_factory.mktemp("model") / "bytes")


@pytest.fixture(scope="package")
def runs(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[dict[str, Served]]:
    """Return the runs by topology, started in parallel, because a start mostly waits."""
    kinds = ("aggregated", "disaggregated")
    # Otherwise the transfer cost is measured, which would be too high on a busy machine.
    fixed = ("serve.max_body_mb=0.25", "router.transfer_cost_tokens=0")
    options = (f"model.path={model_folder}", *fixed)
    with ExitStack() as stack, ThreadPoolExecutor(len(kinds)) as pool:
        contexts = [
            serving(tmp_path_factory.mktemp(kind), f"topology={kind}", *options) for kind in kinds
        ]
        starts = [pool.submit(stack.enter_context, context) for context in contexts]
        yield {kind: start.result() for kind, start in zip(kinds, starts, strict=True)}


@pytest.fixture(scope="package")
def aggregated(runs: dict[str, Served]) -> Served:
    return runs["aggregated"]


@pytest.fixture(scope="package")
def disaggregated(runs: dict[str, Served]) -> Served:
    return runs["disaggregated"]


@pytest.fixture(scope="package", params=["aggregated", "disaggregated"])
def served(request: pytest.FixtureRequest, runs: dict[str, Served]) -> Served:
    """Return each run in turn."""
    return runs[str(request.param)]
