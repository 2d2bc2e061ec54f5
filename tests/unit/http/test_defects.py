"""Exceptions of the code around a handler end one connection, not the server."""

import asyncio
import logging
from collections.abc import Mapping

import pytest

from hpc_dynamo.defects import COUNTS, contain_defects_of
from hpc_dynamo.http import Header, HttpLimits, HttpRequest, HttpServer, ResponseWriter
from tests.unit.http.test_http import HOST, SOON_S, post, raw

GOOD = post(b"", b"Connection: close")


async def handler(request: HttpRequest, response: ResponseWriter) -> None:
    if request.body:
        raise ValueError("defect of the handler")
    response.send(200, b"served")


def format_error(
    status: int, message: str, headers: Mapping[str, str]
) -> tuple[bytes, list[Header]]:
    raise ValueError("defect of the formatter")


def has_key(headers: dict[str, str]) -> bool:
    if "x-defect" in headers:
        raise ValueError("defect of the check")
    return True


BROKEN = {
    "handler, then the error's format": post(b"x"),
    "format of an error for a pipelined request": post(b"") + b"\0\r\n\r\n",
    "format of an error for the first request": b"\0\r\n\r\n",
    "check of the key": post(b"x", b"x-defect: 1"),
    "format of an error for a slow request": post(b"x")[:-1],
}


@pytest.mark.parametrize("name", BROKEN)
async def test_defect_ends_one_connection(name: str, caplog: pytest.LogCaptureFixture) -> None:
    limits, before = HttpLimits(receive_s=1.0), COUNTS.total()
    server = HttpServer(handler, limits=limits, format_error=format_error, has_key=has_key)
    async with asyncio.timeout(SOON_S), server:
        port = await server.listen(HOST, 0)
        answer = await raw(port, BROKEN[name])
        assert (b"served" in answer) is ("pipelined" in name)
        assert b"defect" not in answer
        assert (await raw(port, GOOD)).endswith(b"served")
    assert COUNTS.total() > before or "of an error for" in name
    assert "ValueError: defect" in caplog.text
    assert any(record.levelno == logging.ERROR for record in caplog.records)


async def test_work_that_is_cancelled_before_its_start_is_not_called() -> None:
    async def work() -> None:
        raise ValueError("started")

    task = asyncio.create_task(contain_defects_of(work, logging.getLogger(__name__), "work"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert COUNTS[__name__] == 0
