"""Two runs that most tests share, one of each topology, with a tokenizer for routing."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.serving.served import Served, serving

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose tokens are bytes; the simulator itself needs none."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 8192}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="package")
def runs(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[dict[str, Served]]:
    """By topology; started side by side, since most of a start is waiting."""
    kinds = ("aggregated", "disaggregated")
    # Else what a hand-over costs is measured: on a busy machine it would be too much.
    fixed = ("serve.max_body_mb=0.25", "router.handover_tokens=0")
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
    """Each of them."""
    return runs[str(request.param)]
