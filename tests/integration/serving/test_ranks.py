"""Data-parallel ranks of a prefill and a decode worker behind `hpc-dynamo route`."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.serving.routed import routing, rows
from tests.integration.serving.served import Served
from tests.support.runs import until
from tests.support.simulator import MODEL, REPORT_CACHED, simulator

pytestmark = pytest.mark.slow

RANKS = 2
BLOCKS = 4
ROLES = ("prefill", "decode")


@pytest.fixture(params=["vllm", "sglang"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with ExitStack() as stack:
        words = list[str]()
        for role in ROLES:
            options, _ = publishing(tmp_path, role)
            options += (REPORT_CACHED, "--role", role, "--pd-protocol", str(request.param))
            started = stack.enter_context(simulator("--data-parallel-size", str(RANKS), *options))
            words += [f"--{role}", started.url]
        events = ",".join(publishing(tmp_path, role)[1] for role in ROLES)
        words += ["--events", events, f"route.data_parallel={RANKS}", "engine.name=simulator"]
        words += ["router.conditional_disaggregation=false"]
        words += [f"engine.args.pd-protocol={request.param}"]
        yield stack.enter_context(routing(tmp_path, *words))


def publishing(folder: Path, name: str) -> tuple[tuple[str, ...], str]:
    """Return options of a simulator that publishes KV events, and the endpoints of rank 0."""
    live, replay = f"ipc://{folder}/inproc-{name}", f"ipc://{folder}/inproc-{name}-replay"
    settings = {"enable_kv_cache_events": True, "endpoint": live, "replay_endpoint": replay}
    return ("--kv-events-config", json.dumps(settings)), f"{live}|{replay}"


def explained(served: Served, prompt: list[int]) -> dict[str, Any]:
    found = served.post("/v1/route", {"model": MODEL, "prompt": prompt}).json
    assert isinstance(found, dict)
    return found


def overlaps(served: Served, prompt: list[int]) -> dict[tuple[str, int], int]:
    """Return the cached blocks of each rank that has some."""
    found = explained(served, prompt)["workers"]
    assert len(found) == RANKS * len(ROLES)
    return {(w["role"], w["dp_rank"]): w["overlap_blocks"] for w in found if w["overlap_blocks"]}


def test_prompts_return_to_their_ranks(served: Served) -> None:
    until("both", lambda: [row["state"] for row in rows(served)] == ["ready", "ready"])
    chosen = list[tuple[int, int]]()
    prompts = [list(range(at, at + 16 * BLOCKS + 1)) for at in (1000, 2000)]
    for prompt in prompts:
        why = explained(served, prompt)
        assert (why["prefill"], why["decode"], why["reason"]) == (0, 1, "disaggregated")
        chosen.append((why["prefill_dp_rank"], why["decode_dp_rank"]))
        served.client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)
    assert set(chosen) == {(0, 0), (1, 1)}
    for prompt, (prefill, decode) in zip(prompts, chosen, strict=True):
        expected = {("prefill", prefill): BLOCKS, ("decode", decode): BLOCKS}
        assert overlaps(served, prompt) == expected
        why = explained(served, prompt)
        assert (why["prefill_dp_rank"], why["decode_dp_rank"]) == (prefill, decode)
    for prompt in prompts:
        answer = served.client.completions.create(model=MODEL, prompt=prompt, max_tokens=1)
        assert answer.usage
        assert answer.usage.prompt_tokens_details
        assert answer.usage.prompt_tokens_details.cached_tokens == 16 * BLOCKS
