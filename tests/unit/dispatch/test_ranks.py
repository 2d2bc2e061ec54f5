"""Requests are steered to the data-parallel rank of their lease."""

import itertools
from contextlib import AsyncExitStack

import pytest

from hpc_dynamo.config import Role, TopologyKind
from hpc_dynamo.engines import PdProtocol
from hpc_dynamo.engines.sglang.pd_protocol import SglangPdProtocol
from hpc_dynamo.engines.vllm.pd_protocol import VllmPdProtocol
from hpc_dynamo.messages import PrefixCaches
from tests.unit.dispatch.test_dispatch import PATH, SOON_S, Engine, House, handover, text

HEADER = "x-data-parallel-rank"


def ranks(engine: Engine) -> list[str | None]:
    return [headers.get(HEADER) for headers in engine.headers]


async def test_header_names_the_rank() -> None:
    async with AsyncExitStack() as stack:
        house = House(stack)
        dispatcher = await house.dispatcher(TopologyKind.aggregated)
        engines = await house.engine(text), await house.engine(text), await house.engine(text)
        caches = (PrefixCaches(3), PrefixCaches(), PrefixCaches(3, steered=False))
        for rank, (engine, own) in enumerate(zip(engines, caches, strict=True)):
            await dispatcher.add_worker(rank, Role.aggregated, engine.url, caches=own)
        for _ in range(5):
            await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)
        assert sorted(map(str, ranks(engines[0]))) == ["0", "1", "2"]
        assert ranks(engines[1]) == ranks(engines[2]) == [None]


@pytest.mark.parametrize("protocol", [VllmPdProtocol(), SglangPdProtocol()])
async def test_prefill_and_decode_ranks(protocol: PdProtocol) -> None:
    """A room selects the prefill rank of SGLang, also of each prompt in a list."""
    sglang = isinstance(protocol, SglangPdProtocol)
    async with AsyncExitStack() as stack:
        house = House(stack, protocol)
        dispatcher = await house.dispatcher(TopologyKind.disaggregated)
        prefill = await house.engine(text if sglang else handover)
        decode = await house.engine(text)
        await dispatcher.add_worker(0, Role.prefill, prefill.url, caches=PrefixCaches(3))
        await dispatcher.add_worker(1, Role.decode, decode.url, caches=PrefixCaches(2))
        for _ in range(6):
            await dispatcher.send(PATH, {"prompt": "x"}, SOON_S)
        assert ranks(decode) == [*itertools.islice(itertools.cycle("01"), 6)]
        if sglang:
            assert ranks(prefill) == [None] * 6
            assert [b["bootstrap_room"] % 3 for b in prefill.bodies] == [0, 1, 2, 0, 1, 2]
            assert prefill.introduced == 1
        else:
            assert ranks(prefill) == list("012012")
