"""Workers change their role while requests run; none of these may fail."""

import asyncio
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest

from hpc_dynamo import jsonl
from hpc_dynamo.cli.commands.report import PLOT
from hpc_dynamo.config import Role
from hpc_dynamo.planner.records import PlannerRecord, RoleChange
from hpc_dynamo.timing_model import PROFILES, TimingModel
from tests.integration.serving.served import MODEL, Served, kill, serving
from tests.support.load import Load, flips
from tests.support.runs import hpc_dynamo, until
from tests.unit.planner.modelled import measured

pytestmark = pytest.mark.slow

SHAPE = (
    "topology.prefill.workers=2",
    "topology.decode.workers=2",
    "router.conditional_disaggregation=false",
)
TIMING, TIME_SCALE = "h100-8b", 8
SLOW = (
    *(f"engine.args.timing={TIMING}", f"engine.args.time-scale={TIME_SCALE}"),
    "engine.args.num-blocks=512",
)
OFTEN = ("planner.interval_s=0.5", "planner.stabilization_intervals=1")
PLANNER = (
    *("planner.mode=load", *OFTEN),
    *(
        "planner.prefill_wait_threshold_s=0.2",
        "planner.kv_usage_high=0.3",
        "planner.kv_usage_low=0.05",
    ),
)
OWN = "engine.prefill.args.kv-lease-s=99"  # an argument for prefill workers only
SLA = (
    *("planner=sla", "planner.profile=profile.json", *OFTEN),
    *("planner.ttft_s=0.5", "planner.itl_s=0.08"),
)


@pytest.fixture(scope="module", params=["turn", "restart", "sla"])
def changing_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_folder: Path
) -> Iterator[Served]:
    """A run whose engines serve both roles, or are restarted in the new one."""
    folder = tmp_path_factory.mktemp("reshaped")
    rules = {
        "turn": PLANNER,
        "restart": (*PLANNER, "planner.restart_on_role_change=true", OWN),
        "sla": SLA,
    }
    write_profile(folder / "profile.json")
    words = (*SHAPE, *SLOW, *rules[request.param], f"model.path={model_folder}")
    with serving(folder, *words) as served:
        yield served


def write_profile(file: Path) -> None:
    """Write the profile of the engines of SLOW."""
    slow = TimingModel(
        **{name: TIME_SCALE * value for name, value in asdict(PROFILES[TIMING]).items()}
    )
    file.write_bytes(msgspec.json.encode(measured(slow, byte_s=0.0)))


def records(served: Served) -> list[PlannerRecord]:
    return list(jsonl.read(served.attempt.planner_file, PlannerRecord))


def load(served: Served, prompt_words: int, max_tokens: int) -> Load:
    return Load(served.url, served.key, MODEL, prompt_words, max_tokens)


@pytest.mark.slow
async def test_roles_follow_the_load_in_both_directions(changing_run: Served) -> None:
    prompts = load(changing_run, prompt_words=1200, max_tokens=1)
    await prompts.run_until(lambda: flips(changing_run.attempt, Role.prefill), clients=6)
    answers = load(changing_run, prompt_words=3, max_tokens=300)
    await answers.run_until(lambda: flips(changing_run.attempt, Role.decode), clients=24)
    assert prompts.pieces
    assert answers.pieces
    assert set(answers.pieces) == {300}
    await asyncio.to_thread(check_status_and_report, changing_run)
    check_arguments_of_restarted_workers(changing_run)


def check_arguments_of_restarted_workers(changing_run: Served) -> None:
    if not changing_run.attempt.config().planner.restart_on_role_change:
        return
    log = next(changing_run.attempt.logs.glob("agent-0*")).read_text()
    started = re.findall(r"worker \d \((\w+)\).*? starts: (.*)", log)
    assert len(started) > 4
    assert all(("--kv-lease-s 99" in words) is (role == "prefill") for role, words in started)


def check_status_and_report(changing_run: Served) -> None:
    folder = changing_run.attempt.run.path
    until(
        "a second",
        lambda: (s := changing_run.attempt.status()) and s.planner and s.planner.role_changes,
    )
    shown = hpc_dynamo("status", "--once", str(folder), cwd=folder)
    assert "planner: wants" in shown.stdout
    told = hpc_dynamo("report", str(folder), cwd=folder)
    assert told.returncode == 0, told.stderr
    assert "prefill to decode done; drained in" in told.stdout
    assert "decode to prefill done; drained in" in told.stdout
    assert (folder / PLOT).read_bytes().startswith(b"\x89PNG")
    page = changing_run.metrics_now()
    assert page["hpc_dynamo_planner_role_changes_total"] >= 2
    assert page['hpc_dynamo_planner_target_workers{role="decode"}'] >= 1


REFUSES = """#!/bin/sh
# An engine that cannot be started as a prefill worker while the mark is there.
case "$*" in *"--role prefill"*) [ -e {mark} ] && echo refused >&2 && exit 1 ;; esac
exec {python} "$@"
"""


@pytest.mark.slow
async def test_failed_role_change_is_reverted_and_not_retried_at_once(
    tmp_path: Path, model_folder: Path
) -> None:
    """First the drain times out, then the engine does not start."""
    mark, python = tmp_path / "mark", tmp_path / "python"
    python.write_text(REFUSES.format(mark=mark, python=sys.executable))
    python.chmod(0o755)
    words = (
        *SHAPE,
        *SLOW,
        *PLANNER,
        "planner.restart_on_role_change=true",
        "planner.drain_timeout_s=4",
    )
    more = (f"engine.python={python}", f"model.path={model_folder}")
    with serving(tmp_path, *words, *more) as served:
        mark.touch()
        prompts, answers = load(served, 1200, 1), load(served, 3, 100)
        async with asyncio.TaskGroup() as group:
            group.create_task(answers.run_until(lambda: failed(served, "still running"), 4))
            group.create_task(prompts.run_until(lambda: not_retried(served), 6))
        assert set(answers.pieces) == {100}
        roles = ["decode", "decode", "prefill", "prefill"]
        until("all as before", lambda: ready_roles(served) == roles)


def not_retried(served: Served) -> bool:
    """Return True if the engine was refused, and the load still asks for the change."""
    skipped = any("failed a while ago" in record.skipped for record in records(served))
    return skipped and bool(failed(served, "refused"))


def failed(served: Served, why: str) -> list[RoleChange]:
    return [r.role_change for r in records(served) if r.role_change and why in r.role_change.reason]


def ranks(served: Served) -> set[int]:
    return {row["rank"] for rows in served.workers().values() for row in rows}


def ready_roles(served: Served) -> list[str]:
    return sorted(role for role, rows in served.workers().items() for _ in rows)


def test_role_without_workers_gets_one(tmp_path: Path) -> None:
    words = ("topology.prefill.workers=1", "topology.decode.workers=2", "engine.max_restarts=0")
    with serving(tmp_path, *words, *PLANNER) as served:
        (prefill,) = served.workers()["prefill"]
        kill(served.pid_of(prefill["url"]))
        until("its death is seen", lambda: prefill["rank"] not in ranks(served))
        reply = served.post("/v1/completions", {"model": MODEL, "prompt": "hello"})
        assert reply.status == 200
        assert ready_roles(served) == ["decode", "prefill"]
