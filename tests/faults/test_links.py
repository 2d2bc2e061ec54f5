"""Links between the router and one of two engines, and engines that answer with something else.

The engines run behind TCP proxies of the test, so that no packet filter is needed.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.integration.serving.routed import routing, rows
from tests.integration.serving.served import Served
from tests.support.fault_proxy import CLOSED, FaultProxy, fault_proxy
from tests.support.fault_rows import FaultRecorder
from tests.support.runs import until
from tests.support.simulator import MODEL, simulator
from tests.support.traffic import Traffic

# Requests after the beginning of a fault, or after its end if it is short.
MEANWHILE = 8
SLOW = pytest.mark.slow_fault
WORDS = ("engine.hang_timeout_s=4", "router=round_robin", f"model.name={MODEL}")


@dataclass(frozen=True)
class Routed:
    """Route in front of two engines behind proxies."""

    served: Served
    proxies: tuple[FaultProxy, FaultProxy]

    def ready(self) -> bool:
        return [row["state"] for row in rows(self.served)] == ["ready", "ready"]


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    with simulator() as one, simulator() as two:
        with fault_proxy(one.url) as first, fault_proxy(two.url) as second:
            urls = f"{first.url},{second.url}"
            with routing(tmp_path_factory.mktemp("links"), "--workers", urls, *WORDS) as served:
                yield Routed(served, (first, second))


Inject = Callable[[FaultProxy], None]


def to_engine(proxy: FaultProxy) -> None:
    proxy.to_engine.clear()


def to_clients(proxy: FaultProxy) -> None:
    proxy.to_clients.clear()


def delayed(proxy: FaultProxy) -> None:
    proxy.delay_s = 0.3


def flapping(proxy: FaultProxy) -> None:
    """Reset all connections every 0.2 s, for 2 s."""
    for _ in range(10):
        proxy.reset()
        time.sleep(0.2)


@dataclass(frozen=True)
class Cut:
    """Fault of a link, and how long it lasts: 0 until the requests have been answered."""

    fault: str
    promise: str
    inject: Inject
    seconds: float = 0.0


WAIT, MOVED = "requests wait", "its requests move to the other worker"
CUTS = (
    Cut("link to one of two engines cut for 1 s", WAIT, FaultProxy.cut, 1.0),
    Cut("link to one of two engines cut for 20 s", MOVED, FaultProxy.cut, 20.0),
    Cut("link to one of two engines cut for good", MOVED, FaultProxy.cut),
    Cut("requests to one of two engines are dropped", MOVED, to_engine),
    Cut("answers of one of two engines are dropped", MOVED, to_clients),
    Cut("0.3 s of delay in both directions to one of two engines", "nothing is lost", delayed),
    Cut("all connections to one of two engines reset", MOVED, FaultProxy.reset),
    Cut("connections to one of two engines reset every 0.2 s for 2 s", MOVED, flapping),
)


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(cut, id=cut.fault.replace(" ", "_"), marks=[SLOW] if n else [])
        for n, cut in enumerate(CUTS)
    ],
)
def test_broken_link(routed: Routed, cut: Cut, fault: FaultRecorder) -> None:
    until("both", routed.ready)
    proxy = fault.chance.choice(routed.proxies)
    row = fault(cut.fault, cut.promise)
    try:
        with Traffic(routed.served, fault.chance, 5, MODEL) as traffic:
            traffic.wait_for(fault.chance.randrange(2, 8))
            row.injected()
            healer = threading.Timer(cut.seconds, proxy.heal)
            cut.inject(proxy)
            if cut.seconds:
                healer.start()
                healer.join()
            pending = traffic.sent + MEANWHILE
            until("those that ran", lambda: len(traffic.results) >= pending)
            row.recovered()
    finally:
        proxy.heal()
    row.requests(traffic.sent, traffic.lost)
    assert not traffic.lost, traffic.errors()


def head_of(fields: str, body: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}".encode()


JSON, EVENTS = "Content-Type: application/json\r\n", "Content-Type: text/event-stream\r\n"
CHUNK = '{"id":"x","object":"x","choices":[{"index":0,"text":"a"}]}'
LIES = {
    "500 bytes promised, 6 sent": head_of(JSON + "Content-Length: 500", '{"id":'),
    "nothing, and closes the connection": CLOSED,
    "nothing, and keeps the connection": b"",
    "bytes that are not HTTP": bytes(range(128, 256)),
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "a head of 1 MiB": head_of("X: " + "y" * 2**20),
    "a broken chunk": head_of(JSON + "Transfer-Encoding: chunked", "zz\r\n{}"),
    "HTML": head_of("Content-Type: text/html\r\nContent-Length: 20", "<html>It works</html"),
    "an empty body": head_of(JSON + "Content-Length: 0"),
    "invalid UTF-8": head_of(JSON + "Content-Length: 9", "") + b'{"a":"\xff"}',
    "JSON that is no object": head_of(JSON + "Content-Length: 2", "[]"),
    "an empty stream": head_of(EVENTS + "Content-Length: 0"),
    "a stream without its end": head_of(EVENTS + "Connection: close", f"data: {CHUNK}\n\n"),
    "status 500": b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n{}",
    "status 200 in lower case, without a length": b"http/1.1 200 ok\r\n\r\n",
}


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lie, id=lie.replace(" ", "_"), marks=[SLOW] if n >= 5 else [])
        for n, lie in enumerate(LIES)
    ],
)
def test_engine_that_lies(routed: Routed, lie: str, fault: FaultRecorder) -> None:
    until("both", routed.ready)
    proxy = fault.chance.choice(routed.proxies)
    row = fault(f"one of two engines answers with {lie}", "tried on the other worker")
    proxy.posts, proxy.answer = 0, LIES[lie]
    try:
        with Traffic(routed.served, random.Random(fault.seed), 20, MODEL) as traffic:
            until("lies", lambda: proxy.posts)
            traffic.wait_for(fault.chance.randrange(10, 20))
    finally:
        proxy.heal()
    row.recovered()
    row.requests(traffic.sent, traffic.lost)
    assert not traffic.lost, traffic.errors()
