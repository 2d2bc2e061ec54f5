"""Parts of the test machine that must not be missing."""

import pytest

from tests.support.requirements import required, skip_without


def test_missing_part_fails_only_if_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_DYNAMO_REQUIRE", "cluster, vllm containers")
    assert [required(what) for what in ("cluster", "vllm", "containers", "sglang")] == [
        *(True, True, True),
        False,
    ]
    with pytest.raises(pytest.fail.Exception, match="no podman"):
        skip_without("containers", "no podman")
    with pytest.raises(pytest.skip.Exception, match="no SGLang"):
        skip_without("sglang", "no SGLang")
