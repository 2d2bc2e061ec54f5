"""Source of the endpoint's tokenizer, and notices if there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.serving.served import Served, serving
from tests.support.hub import REPOSITORY, cached
from tests.support.runs import SIMULATOR, hpc_dynamo, latest, until

OFF = "KV-aware routing of texts is off, and they are routed by load"
BODY = {"prompt": "An opening that is longer than a block of sixteen tokens.", "max_tokens": 1}
SHAPE = ("topology=aggregated",)


def notices(served: Served) -> tuple[str, ...]:
    status = served.attempt.status()
    return status.notices if status else ()


def test_cached_hub_id_has_tokenizer(tmp_path: Path, model_folder: Path) -> None:
    cached(tmp_path / "hf" / "hub", model_folder)
    words = (f"model.path={REPOSITORY}", f"engine.env.HF_HOME={tmp_path}/hf")
    with serving(tmp_path, *SHAPE, *words) as served:
        said = served.post("/v1/route", BODY).json
        assert said["tokens"] == len(str(BODY["prompt"]))
        assert "notice" not in said
        assert notices(served) == ()


@pytest.fixture(scope="module")
def untokenized(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("untokenized")
    words = ("model.path=org/name", "model.name=m", f"engine.env.HF_HOME={folder}/hf")
    with serving(folder, *SHAPE, *words) as served:
        yield served


def test_missing_tokenizer_adds_notice_to_route_response(untokenized: Served) -> None:
    said = untokenized.post("/v1/route", BODY).json
    assert said["tokens"] == 0
    assert said["notice"].startswith(f"{OFF}: model.path=org/name is neither a folder")
    assert "hf download org/name, or model.path=FOLDER" in said["notice"]


def test_missing_tokenizer_is_shown_in_status(untokenized: Served) -> None:
    (said,) = until("the notice", lambda: notices(untokenized), 20)
    assert said.startswith(OFF)
    folder = untokenized.attempt.run.path
    shown = hpc_dynamo("status", str(folder), "--once", cwd=folder.parent).stdout
    assert f"notice: {OFF}: model.path=org/name" in shown


def test_downloaded_tokenizer_is_used(tmp_path: Path, model_folder: Path) -> None:
    """Fill the cache before the engine is ready, as an engine that downloads its model."""
    words = (f"model.path={REPOSITORY}", f"engine.env.HF_HOME={tmp_path}/hf", *SHAPE, "name=s")
    slow = "engine.args.start-delay-s=15"
    assert hpc_dynamo("serve", *SIMULATOR, *words, slow, "--detach", cwd=tmp_path).returncode == 0
    served = Served(latest(tmp_path / "runs" / "s"))
    try:
        log = served.attempt.frontend_log(0)
        until("the frontend", lambda: log.exists() and "listens on" in log.read_text())
        cached(tmp_path / "hf" / "hub", model_folder)
        served.wait()
        until("the tokenizer", lambda: served.post("/v1/route", BODY).json["tokens"], 20)
        assert notices(served) == ()
    finally:
        served.stop()


def test_other_policies_need_no_tokenizer(tmp_path: Path) -> None:
    with serving(tmp_path, *SHAPE, "router=least_loaded") as served:
        assert "notice" not in served.post("/v1/route", BODY).json
        assert notices(served) == ()
