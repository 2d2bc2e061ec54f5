"""Workers of SGLang's protocol change their role while they run; none of the requests may fail."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_dynamo.config import Role
from tests.integration.serving.served import Served, serving
from tests.integration.serving.test_planner import PLANNER, SHAPE, SLOW, load
from tests.support.load import flips
from tests.support.runs import until

pytestmark = pytest.mark.slow

SWITCHING = (
    *SHAPE, *SLOW, *PLANNER,
    "engine.args.pd-protocol=sglang", "engine.args.enable-pd-role-switch=true",
)  # fmt: skip
LOG_LINE = "could not change to prefill while it runs; restarting its engine: /pd_role_switch"

WITHOUT_SWITCH = """#!/bin/sh
# An engine that was started without the option, and so refuses to change its role.
for word; do
  shift
  [ "$word" = --enable-pd-role-switch ] || set -- "$@" "$word"
done
exec {python} "$@"
"""


@pytest.fixture(params=[True, False], ids=["in place", "refused"])
def run(
    request: pytest.FixtureRequest, tmp_path: Path, model_folder: Path
) -> Iterator[tuple[Served, bool]]:
    python = tmp_path / "python"
    python.write_text(WITHOUT_SWITCH.format(python=sys.executable))
    python.chmod(0o755)
    words = () if request.param else (f"engine.python={python}",)
    with serving(tmp_path, *SWITCHING, *words, f"model.path={model_folder}") as served:
        yield served, request.param


def urls(served: Served) -> set[str]:
    return {row["url"] for rows in served.workers().values() for row in rows}


async def test_role_change_keeps_the_engine_process(run: tuple[Served, bool]) -> None:
    """If the engine refuses, it is restarted, and the log has the reason."""
    served, in_place = run
    before = {url: served.pid_of(url) for url in urls(served)}
    prompts = load(served, prompt_words=1200, max_tokens=1)
    await prompts.run_until(lambda: flips(served.attempt, Role.prefill), clients=6)
    answers = load(served, prompt_words=3, max_tokens=300)
    if in_place:
        await answers.run_until(lambda: flips(served.attempt, Role.decode), clients=24)
    assert set(prompts.pieces) == {1}
    assert set(answers.pieces) <= {300}
    log = served.attempt.agent_log(0).read_text()
    if in_place:
        # A worker that changes its role is not in the list.
        until("all workers", lambda: urls(served) == before.keys())
        assert {url: served.pid_of(url) for url in urls(served)} == before
        assert LOG_LINE not in log
    else:
        assert LOG_LINE in log
        assert before.keys() - urls(served)
