"""Signals to processes of an endpoint while clients send requests."""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from tests.integration.serving.served import Served, serving
from tests.support.fault_rows import FaultRecorder
from tests.support.faults import ended, engines, port_of, supervisors
from tests.support.runs import until
from tests.support.traffic import Traffic

WORDS = (
    *("topology=disaggregated", "topology.decode.workers=2", "engine.max_restarts=100"),
    "engine.restart_window_min=0.02",  # restarts without a delay
    *("router.conditional_disaggregation=false", "serve.frontend_processes=1"),
    *("engine.hang_timeout_s=4", "cluster.heartbeat_timeout_s=4"),
)
SLOW = pytest.mark.slow_fault
PAUSE_S = 2.0
HANG = "noticed after `engine.hang_timeout_s`, here 4 s; nothing is lost"
NOTHING_LOST = "restarted; nothing is lost"
WAIT = "requests wait"

Find = Callable[[Served, random.Random], list[int]]


def engine(role: str) -> Find:
    """Find the engine of a random worker of a role."""

    def find(served: Served, chance: random.Random) -> list[int]:
        url = chance.choice(served.workers()[role])["url"]
        return engines(served.attempt.path, port_of(url))

    return find


def supervisor(served: Served, chance: random.Random) -> list[int]:
    url = chance.choice(served.workers()["decode"])["url"]
    return supervisors(served.attempt.path, port_of(url))


def decode_engines(served: Served, _chance: random.Random) -> list[int]:
    urls = [row["url"] for row in served.workers()["decode"]]
    return [pid for url in urls for pid in engines(served.attempt.path, port_of(url))]


def all_engines(served: Served, _chance: random.Random) -> list[int]:
    return engines(served.attempt.path)


def frontend(served: Served, _chance: random.Random) -> list[int]:
    return list(served.frontends().values())


def head(served: Served, _chance: random.Random) -> list[int]:
    return [served.head]


def head_and_frontend(served: Served, chance: random.Random) -> list[int]:
    return [*head(served, chance), *frontend(served, chance)]


@dataclass(frozen=True)
class Case:
    """Signal to some processes. With `pause_s` they are resumed after this time."""

    fault: str
    promise: str
    find: Find
    number: signal.Signals = signal.SIGKILL
    pause_s: float = 0.0
    may_lose: bool = False

    def inject(self, served: Served, chance: random.Random) -> list[int]:
        """Send the signal; return the processes that must end."""
        found = self.find(served, chance)
        for pid in found:
            os.kill(pid, self.number)
        if not self.pause_s:
            return found
        time.sleep(self.pause_s)
        for pid in found:
            os.kill(pid, signal.SIGCONT)
        return []


STOP = signal.SIGSTOP
CASES = (
    Case("SIGKILL of one of two decode engines", NOTHING_LOST, engine("decode")),
    Case("SIGKILL of the only prefill engine", NOTHING_LOST, engine("prefill")),
    Case("SIGKILL of the only frontend", "restarted", frontend, may_lose=True),
    Case("SIGKILL of a supervisor", "its engine ends too; nothing is lost", supervisor),
    Case("SIGKILL of both decode engines", NOTHING_LOST, decode_engines),
    Case("SIGKILL of all engines", NOTHING_LOST, all_engines),
    Case("SIGTERM of a decode engine", NOTHING_LOST, engine("decode"), signal.SIGTERM),
    Case("SIGSEGV of a decode engine", NOTHING_LOST, engine("decode"), signal.SIGSEGV),
    Case("SIGABRT of the prefill engine", NOTHING_LOST, engine("prefill"), signal.SIGABRT),
    Case("SIGTERM of the only frontend", "restarted", frontend, signal.SIGTERM, may_lose=True),
    Case("SIGSTOP of one of two decode engines, for good", HANG, engine("decode"), STOP),
    Case("SIGSTOP of all engines, for good", HANG, all_engines, STOP),
    Case("SIGSTOP of a decode engine for 2 s", WAIT, engine("decode"), STOP, PAUSE_S),
    Case("SIGSTOP of the prefill engine for 2 s", WAIT, engine("prefill"), STOP, PAUSE_S),
    Case("SIGSTOP of the only frontend for 2 s", WAIT, frontend, STOP, PAUSE_S),
    Case("SIGSTOP of the head for 2 s", WAIT, head, STOP, PAUSE_S),
    Case("SIGSTOP of head and frontend for 2 s", WAIT, head_and_frontend, STOP, PAUSE_S),
)
SAMPLE = 2  # cases that CI runs


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("processes"), *WORDS) as served:
        yield served


@pytest.fixture
def target(request: pytest.FixtureRequest, case: Case) -> Iterator[Served]:
    """Yield the shared run, or one whose frontend has used none of its few restarts."""
    if not case.may_lose:
        yield request.getfixturevalue("served")
        return
    with serving(request.getfixturevalue("tmp_path"), *WORDS) as served:
        yield served


def complete(served: Served) -> bool:
    found = served.workers()
    return [len(found.get(role, [])) for role in ("prefill", "decode")] == [1, 2]


def recovered(served: Served, traffic: Traffic, victims: list[int], since: float) -> bool:
    """Return True if the processes are replaced and a new request was answered."""
    if not all(map(ended, victims)) or not traffic.answered_since(since):
        return False
    try:
        return complete(served)
    except OSError:  # no frontend
        return False


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.fault.replace(" ", "_"), marks=[SLOW] if n >= SAMPLE else [])
        for n, case in enumerate(CASES)
    ],
)
def test_signal_under_load(target: Served, case: Case, fault: FaultRecorder) -> None:
    until("all workers", lambda: complete(target))
    row = fault(case.fault, case.promise)
    with Traffic(target, fault.chance) as traffic:
        traffic.wait_for(fault.chance.randrange(2, 12))
        row.injected()
        victims = case.inject(target, fault.chance)
        now = time.monotonic()
        until("recovery", partial(recovered, target, traffic, victims, now))
        row.recovered()
    row.requests(traffic.sent, traffic.lost)
    assert case.may_lose or not traffic.lost, traffic.errors()
    assert target.attempt.outcome() is None
