"""Environment of an engine process."""

import tempfile
from pathlib import Path

import pytest

from hpc_dynamo.agent.engine_process import temporary_folders
from hpc_dynamo.config import Role
from hpc_dynamo.engines import Placement
from hpc_dynamo.topology import Shard, Worker


def place(rank: int, folder: str) -> Placement:
    worker = Worker(rank, Role.decode, (Shard(0, (0,)),))
    return Placement(worker, "127.0.0.1", (1,), (), "token", events_folder=folder)


def test_engines_of_a_node_do_not_share_a_cache_of_compiled_code() -> None:
    """vLLM's first request for log-probabilities compiles, under a lock of this cache."""
    folder = f"{tempfile.gettempdir()}/node"
    found = [temporary_folders(place(rank, folder)) for rank in range(3)]
    assert {each["TMPDIR"] for each in found} == {folder}
    caches = {each["TORCHINDUCTOR_CACHE_DIR"] for each in found}
    assert len(caches) == 3
    assert all(cache.startswith(f"{folder}/") for cache in caches)


@pytest.mark.parametrize(
    ("permissions", "kept"), [(0o700, True), (0o755, True), (0o1777, False), (0o777, False)]
)
def test_other_tmpdir_is_kept_if_it_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, permissions: int, kept: bool
) -> None:
    """Engines use fixed names there: another user could have put compiled code under them."""
    tmp_path.chmod(permissions)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = temporary_folders(place(0, "/elsewhere/node"))
    assert found.pop("TORCHINDUCTOR_CACHE_DIR") == "/elsewhere/node/inductor-0"
    assert found == ({} if kept else {"TMPDIR": "/elsewhere/node"})


def test_no_folder_no_variables() -> None:
    assert temporary_folders(place(0, "")) == {}
