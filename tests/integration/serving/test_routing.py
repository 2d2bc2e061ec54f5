"""Routing hints of clients, and explanations of routing decisions."""

from typing import Any

import pytest

from tests.integration.serving.served import Reply, Served

COMPLETIONS, ROUTE = "/v1/completions", "/v1/route"
PROMPT = "An opening that is longer than a block of sixteen tokens, and then one more. "


def body(**more: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": 2, **more}


def asked(served: Served, path: str, content: dict[str, Any], headers: dict[str, str]) -> Reply:
    return served.post(path, content, {"Authorization": f"Bearer {served.key}", **headers})


def decisions(served: Served) -> dict[str, float]:
    """Return the requests by rank and policy, without the role."""
    found = {k: v for k, v in served.metrics_now().items() if "router_decisions_total" in k}
    return {key: value for key, value in found.items() if value}


def test_route_explanation_names_worker_and_costs(
    served: Served, request: pytest.FixtureRequest
) -> None:
    said = served.post(ROUTE, body()).json
    tokens = len(PROMPT.encode())
    assert (said["policy"], said["tokens"], said["block_tokens"]) == ("kv", tokens, 16)
    ranks = {worker["rank"] for worker in said["workers"] if worker["chosen"]}
    assert ranks == {said["decode"], said["prefill"]} - {None}
    split = "disaggregated" in request.node.name
    assert said["reason"] in ({"disaggregated", "local_short_prompt"} if split else {"aggregated"})


def test_route_explanation_sends_nothing(aggregated: Served) -> None:
    before = decisions(aggregated)
    for _ in range(3):
        assert aggregated.post(ROUTE, body()).status == 200
    assert decisions(aggregated) == before


def test_repeated_prompt_goes_to_same_worker(aggregated: Served) -> None:
    prompt = body(prompt=f"Found again. {PROMPT}")
    assert {w["overlap_blocks"] for w in aggregated.post(ROUTE, prompt).json["workers"]} == {0}
    assert aggregated.post(COMPLETIONS, prompt).status == 200
    said = aggregated.post(ROUTE, prompt).json
    (there,) = [w for w in said["workers"] if w["overlap_blocks"]]
    assert there["rank"] == said["decode"]
    assert there["left_tokens"] < 16


def test_header_or_body_selects_worker(aggregated: Served) -> None:
    ranks = [w["rank"] for w in aggregated.post(ROUTE, body()).json["workers"]]
    for rank in ranks:
        headers = {"X-Worker-Rank": str(rank)}
        assert asked(aggregated, ROUTE, body(), headers).json["decode"] == rank
        named = body(hpc_dynamo={"workers": [rank]})
        assert aggregated.post(ROUTE, named).json["decode"] == rank
        assert aggregated.post(COMPLETIONS, named).status == 200
    reply = asked(aggregated, COMPLETIONS, body(), {"X-Worker-Rank": "77"})
    assert reply.status == 400
    assert "no worker 77 is ready; ready ones: " in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "field", "words"),
    [
        ({"X-Priority": "high"}, {}, "priority"),
        ({"X-Router-Policy": "kvv"}, {}, "kvv"),
        ({"X-Router-Temperature": "-1"}, {}, "temperature"),
        ({"X-Worker-Rank": "1;2"}, {}, "workers"),
        ({}, {"hpc_dynamo": {"polcy": "kv"}}, "polcy"),
        ({}, {"hpc_dynamo": 3}, "object"),
    ],
)
def test_invalid_hints_are_rejected(
    aggregated: Served, headers: dict[str, str], field: dict[str, Any], words: str
) -> None:
    reply = asked(aggregated, COMPLETIONS, body(**field), headers)
    assert reply.status == 400
    message = reply.json["error"]["message"]
    assert words in message
    assert "overlap_weight" in message  # the known fields are named


def test_policy_hint_applies_to_one_request(aggregated: Served) -> None:
    headers = {"X-Router-Policy": "round_robin", "X-Priority": "3", "X-Session-Id": "s"}
    assert asked(aggregated, ROUTE, body(), headers).json["policy"] == "round_robin"
    assert asked(aggregated, COMPLETIONS, body(), headers).status == 200
