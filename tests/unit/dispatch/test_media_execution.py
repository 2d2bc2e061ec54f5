"""Requests with media on disaggregated workers: divided only by engines that can do it."""

from typing import Any

import msgspec
import pytest

from hpc_dynamo.config import Config, Engine, Topology, TopologyKind
from hpc_dynamo.dispatch import RequestBuilder, RequestContext
from hpc_dynamo.dispatch.execution import AGGREGATED, DISAGGREGATED
from hpc_dynamo.dispatch.media_execution import MediaExecution, media_kinds
from hpc_dynamo.engines import CHAT, MESSAGES, RESPONSES, pd_protocol_of
from hpc_dynamo.engines.contract import contracts, disaggregated_media
from hpc_dynamo.errors import RequestFailed

DATA = "data:image/png;base64,iVBORw0KGgo="


def chat(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, *parts]}]}


IMAGE = chat({"type": "image_url", "image_url": {"url": DATA}})
WITH_MEDIA: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, IMAGE, "image"),
    (CHAT, chat({"type": "input_audio", "input_audio": {"data": "AA"}}), "audio"),
    (CHAT, chat({"image_url": {"url": DATA}}), "image"),
    (CHAT, chat({"type": "video_url", "video_url": {"url": DATA}}), "video"),
    (CHAT, chat({"type": "image_embeds", "image_embeds": "AA"}), "image"),
    (MESSAGES, chat({"type": "image", "source": {"type": "base64", "data": "AA"}}), "image"),
    (
        MESSAGES,
        chat({"type": "tool_result", "content": [{"type": "image", "source": {"data": "AA"}}]}),
        "image",
    ),
    (MESSAGES, {"messages": [], "system": [{"type": "image", "source": {}}]}, "image"),
    (RESPONSES, {"input": [{"content": [{"type": "input_image", "image_url": DATA}]}]}, "image"),
    (RESPONSES, {"input": [{"output": [{"type": "input_image", "image_url": DATA}]}]}, "image"),
]
WITHOUT: list[dict[str, Any]] = [
    chat(),
    {"messages": [{"role": "user", "content": "an image_url and input_audio"}]},
    {"messages": [], "audio": {"voice": "a"}, "modalities": ["text", "audio"]},
    {"input": "image"},
    chat({"type": "tool_use", "input": {"image": "a", "type": "image"}}),
    {"messages": [], "tools": [{"type": "function", "function": {"name": "image"}}]},
]


def raw(body: dict[str, Any]) -> dict[str, Any]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}


def builder(**engine: Any) -> RequestBuilder:
    topology = Topology(kind=TopologyKind.disaggregated)
    return RequestBuilder(Config(engine=Engine(**engine), topology=topology))


@pytest.mark.parametrize("row", WITH_MEDIA, ids=lambda row: f"{row[0]} {row[2]}")
def test_media_are_found(row: tuple[str, dict[str, Any], str]) -> None:
    assert media_kinds(raw(row[1])) == media_kinds(row[1]) == {row[2]}


@pytest.mark.parametrize("body", WITHOUT)
def test_other_bodies_have_no_media(body: dict[str, Any]) -> None:
    assert media_kinds(raw(body)) == media_kinds(body) == frozenset()


@pytest.mark.parametrize(
    ("engine", "divided"),
    [
        ({"name": "vllm"}, True),
        ({"name": "vllm", "version": "0.33"}, True),
        ({"name": "sglang"}, True),
        ({"name": "trtllm"}, False),
        ({"name": "trtllm", "version": "1.3"}, False),
        ({"name": "simulator"}, True),
        ({"name": "simulator", "args": {"pd-protocol": "trtllm"}}, False),
    ],
)
async def test_engine_divides_media(engine: dict[str, Any], divided: bool) -> None:
    for path, body, _ in WITH_MEDIA:
        if path == CHAT:
            request = await builder(**engine).build(CHAT, b"", raw(body), RequestContext())
            assert request.routing.may_disaggregate is divided
    text = await builder(**engine).build(CHAT, b"", raw(chat()), RequestContext())
    assert text.routing.may_disaggregate


def test_kind_that_no_worker_can_serve_is_refused() -> None:
    """A worker of SGLang in a disaggregated topology serves no request without the other."""
    sglang = MediaExecution(pd_protocol_of(Engine(name="sglang")), frozenset({"audio"}))
    with pytest.raises(RequestFailed, match=r"image between .* run topology=aggregated") as refused:
        sglang.of(raw(IMAGE), DISAGGREGATED)
    assert refused.value.status == 400
    assert sglang.of(raw(IMAGE), AGGREGATED) == AGGREGATED
    assert sglang.of(raw(WITH_MEDIA[1][1]), DISAGGREGATED) == DISAGGREGATED
    vllm = MediaExecution(pd_protocol_of(Engine(name="vllm")), frozenset({"audio"}))
    assert vllm.of(raw(IMAGE), DISAGGREGATED) == AGGREGATED


def test_recorded_versions_list_media_that_they_divide() -> None:
    for name in ("sglang", "trtllm", "vllm"):
        for contract in contracts(name):
            kinds = disaggregated_media(name, contract.version)
            assert kinds == set(contract.disaggregated_media) <= {"audio", "image", "video"}
