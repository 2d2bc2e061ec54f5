"""Environment of an engine process."""

import tempfile

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


def test_folders_elsewhere_are_not_used() -> None:
    assert temporary_folders(place(0, "")) == temporary_folders(place(0, "/shared/node")) == {}
