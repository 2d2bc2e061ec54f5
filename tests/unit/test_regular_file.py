"""Files that another user may have made: a pipe or a device is not waited for."""

import os
from pathlib import Path

import pytest

from hpc_dynamo.cli.task_config import key_file
from hpc_dynamo.engines.sglang.prompt_check import vocabulary_size
from hpc_dynamo.engines.vllm.lora import adapter_rank
from hpc_dynamo.errors import ConfigError, InputError
from hpc_dynamo.http.tls import pinned_tls_context
from hpc_dynamo.planner.profile import load_profile
from hpc_dynamo.regular_file import MAX_KEY_BYTES, read_key
from hpc_dynamo.timing_model import load_timing


@pytest.fixture(params=["pipe", "endless", "huge"])
def hostile(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a folder whose files have no end, or never send one."""
    for name in ("config.json", "adapter_config.json", "timing.json"):
        file = tmp_path / name
        if request.param == "pipe":
            os.mkfifo(file)
        elif request.param == "endless":
            file.symlink_to("/dev/zero")
        else:
            file.touch()
            os.truncate(file, 1 << 40)
    return tmp_path


def test_hostile_file_is_refused(hostile: Path) -> None:
    file = hostile / "timing.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(file)
    with pytest.raises(InputError, match="cannot be read"):
        load_timing(str(file))
    with pytest.raises(ConfigError, match=r"api_key_file=.*timing\.json"):
        key_file("serve.api_key_file", str(file))
    with pytest.raises(OSError, match="it "):
        pinned_tls_context(str(file))
    assert adapter_rank(str(hostile)) == vocabulary_size(hostile) == 0


def test_key_is_read_without_spaces_within_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(" secret\n")
    assert read_key(file) == "secret"
    file.write_bytes(b"x" * (MAX_KEY_BYTES + 1))
    with pytest.raises(OSError, match="more than"):
        read_key(str(file))
