"""The replay of a trace: its mapping, the oracle, what counts as good, and a run of seconds."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.replay.engine import Engine, write_mocker, write_simulator
from benchmarks.replay.hpc_dynamo_target import policies
from benchmarks.replay.load import Ear, Seen, replay
from benchmarks.replay.oracle import Oracle, oracle, placed, pooled
from benchmarks.replay.plot import draw
from benchmarks.replay.results import Found, Label, Noise, Prefix, Run, Targets, summary
from benchmarks.replay.sweep import grid
from benchmarks.replay.tables import tables
from benchmarks.replay.trace import ENGINE_BLOCK, LEAST, MOST, Request, Scale, read
from hpc_dynamo.config import TopologyKind
from hpc_dynamo.errors import InputError, UsageError
from hpc_dynamo.http import HttpClient, HttpServer, ResponseWriter
from hpc_dynamo.http import HttpRequest as Asked
from hpc_dynamo.timing_model import load_timing
from tests.support.runs import HANG_S, until
from tests.support.tiny_models import byte_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SCALE = Scale(compress=10, shrink=8)


def line(at_ms: float, prompt: int, answer: int, *ids: int) -> dict[str, object]:
    return {
        "timestamp": at_ms,
        "input_length": prompt,
        "output_length": answer,
        "hash_ids": list(ids),
    }


def trace(folder: Path, *lines: dict[str, object]) -> Path:
    file = folder / "trace.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return file


# The trace as requests.


def test_equal_hash_ids_are_equal_tokens_and_the_rest_is_unique(tmp_path: Path) -> None:
    file = trace(
        tmp_path, line(0, 1200, 80, 7, 8, 9), line(3000, 1200, 80, 7, 8, 9), line(0, 1024, 1, 7, 5)
    )
    first, third, second = read(file, 0, SCALE)  # by time
    a, b, c = first.ids(), second.ids(), third.ids()
    assert [len(a), len(b), len(c)] == [150, 150, 128]
    assert a[:128] == b[:128]
    assert a[:64] == c[:64]
    assert a[64:128] != c[64:]
    assert a[128:] != b[128:]
    assert all(LEAST <= token < MOST for token in a + b + c)
    assert first.ids() == read(file, 1, SCALE)[0].ids(), "the same in every run"


def test_scaled_requests_are_never_empty(tmp_path: Path) -> None:
    rows = (line(5000, 3, 1, 1), line(8000, 512, 80, 1), line(9000, 516, 81, 1, 2))
    tiny, whole, more = read(trace(tmp_path, *rows), 0, SCALE)
    assert [r.due_s for r in (tiny, whole, more)] == [0.0, 0.3, 0.4]
    assert [r.prompt for r in (tiny, whole, more)] == [1, 64, 64]
    assert [r.answer for r in (tiny, whole, more)] == [1, 10, 10]
    assert SCALE.trace_s(0.3) == 3.0
    assert SCALE.trace_itl_s(0.016) == pytest.approx(0.020)


def test_body_is_valid_for_an_engine(tmp_path: Path) -> None:
    request = read(trace(tmp_path, line(0, 700, 160, 3, 4)), 0, SCALE)[0]
    body = json.loads(request.body())
    assert body["prompt"] == request.ids()
    assert body["max_tokens"] == 20
    assert body["ignore_eos"] is body["stream"] is True


@pytest.mark.parametrize("shrink", [0, 3, 64])
def test_scaling_keeps_whole_blocks(shrink: int) -> None:
    with pytest.raises(UsageError, match="one of 1, 2, 4, 8, 16, 32"):
        Scale(10, shrink)


def test_invalid_trace_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)nowhere.jsonl: No such file.*--trace"):
        read(tmp_path / "nowhere.jsonl", 0, SCALE)
    (tmp_path / "bad.jsonl").write_text('{"timestamp": 0}\n')
    with pytest.raises(InputError, match=r"bad.jsonl.*input_length"):
        read(tmp_path / "bad.jsonl", 0, SCALE)


# The oracle. Blocks of the trace are one of the engines' here, and answers empty.


def asked(*prompts: Sequence[int], tail: int = 1, answer: int = 1) -> list[Request]:
    return [
        Request(number, 0.0, tuple(ids), ENGINE_BLOCK, tail, answer)
        for number, ids in enumerate(prompts)
    ]


def rate(hits: int, requests: Sequence[Request]) -> float:
    return hits * ENGINE_BLOCK / sum(r.prompt for r in requests)


def test_oracle_matches_up_to_the_first_difference() -> None:
    requests = asked((1, 2, 3), (1, 2, 4), (5, 2, 3))
    assert pooled(requests, 100, answers=True) == rate(2, requests)


def test_oracle_always_computes_the_last_token() -> None:
    requests = asked((1, 2), (1, 2), tail=0)
    assert pooled(requests, 100, answers=False) == rate(1, requests)


def test_oracle_evicts_least_recently_used_ends_first() -> None:
    requests = asked((1, 2), (3, 4), (1, 2))
    assert pooled(requests, 4, answers=False) == rate(2, requests)
    assert pooled(requests, 3, answers=False) == rate(1, requests)
    assert pooled(requests, 2, answers=False) == 0


def test_responses_use_the_oracle_cache() -> None:
    requests = asked((1, 2), (3, 4), (1, 2), answer=2 * ENGINE_BLOCK)
    assert pooled(requests, 4, answers=False) == rate(2, requests)
    assert pooled(requests, 4, answers=True) == 0


def test_oracle_with_separate_caches() -> None:
    """Two conversations, caches for one: together they push each other out."""
    requests = asked(*[(1, 2), (3, 4)] * 3)
    assert placed(requests, 1, 2, 0, answers=False) == 0
    assert placed(requests, 2, 2, 0, answers=False) == rate(8, requests)


def test_few_equal_blocks_do_not_attract_all_requests() -> None:
    """All begin with block 0, and two conversations fill a cache each."""
    requests = asked(*[(0, 1, 2), (0, 3, 4)] * 3)
    assert placed(requests, 2, 3, 0, answers=False) == rate(5, requests)
    assert placed(requests, 2, 3, 1, answers=False) == rate(12, requests)
    assert oracle(requests, 2, 3, answers=False) == Oracle(
        pooled=rate(13, requests), placed=rate(12, requests), endless=rate(13, requests)
    )


# The modelled engine.


@pytest.mark.parametrize("kind", list(TopologyKind))
def test_both_engines_get_the_same_timing(kind: TopologyKind, tmp_path: Path) -> None:
    """The table is read as the mocker does: new tokens of prompts, tokens of context, added."""
    timing = Engine().timing(SCALE, kind)
    write_simulator(timing, tmp_path / "t.json")
    write_mocker(timing, tmp_path / "t.npz")
    simulator, table = load_timing(str(tmp_path / "t.json")), np.load(tmp_path / "t.npz")
    prefill = np.interp(200, table["prefill_isl"], table["prefill_ttft_ms"])
    decode = np.interp(9000, table["decode_active_kv_tokens"], table["decode_itl"][:, 1])
    assert simulator.step_s(200, 1.0, 0, 0) * 1e3 == pytest.approx(prefill)
    assert simulator.step_s(0, 0.0, 5, 9000) * 1e3 == pytest.approx(decode)
    if kind is TopologyKind.aggregated:  # other workers never do both in one step
        assert simulator.step_s(200, 1.0, 5, 9000) * 1e3 == pytest.approx(prefill + decode)


def test_scaled_token_takes_the_time_of_several() -> None:
    """A prompt of 8,192 tokens with 4 streams of 10,000, in tokens of the trace and scaled."""
    small, whole = (Engine().timing(Scale(1, k), TopologyKind.aggregated) for k in (8, 1))
    assert small.step_s(1024, 0, 0, 0) == pytest.approx(whole.step_s(8192, 0, 0, 0))
    assert small.step_s(0, 0, 4, 5000) == pytest.approx(8 * whole.step_s(0, 0, 4, 40000))


def test_request_larger_than_a_cache_is_rejected() -> None:
    with pytest.raises(UsageError, match="the longest request needs more"):
        Engine(cache_tokens=4096).longest(asked((1,), tail=600), SCALE)


# What was seen, and what it amounts to.


def seen(due_s: float, ttft_s: float, end_s: float, answer: int = 11, error: str = "") -> Seen:
    gap = (end_s - ttft_s) / (answer - 1)
    return Seen(100, answer, due_s, 0.0, ttft_s, end_s, [gap] * (answer - 1), 40, error)


LABEL = Label("kv", "aggregated", 0)
TARGETS = Targets(ttft_s=2.0, itl_s=0.05)
NOISE = Noise(10.0, 5.0, 1.0, 0.1)


def figures(*all_seen: Seen, prefix: Prefix | None = None) -> Run:
    return summary(LABEL, all_seen, SCALE, TARGETS, prefix, NOISE)


def test_response_within_both_targets_is_good() -> None:
    good, slow, halting = seen(0, 0.2, 0.5), seen(1, 0.21, 0.5), seen(2, 0.1, 0.6)
    found = figures(good, slow, halting, seen(3, 0.1, 0.2, error="status 503"))
    assert found.seconds == pytest.approx(26)  # the last whole answer's end
    assert found.goodput_hz == pytest.approx(1 / 26)
    assert found.errors == {"status 503": 1}
    assert found.requests == 4
    assert found.ttft_mean_s == pytest.approx((2 + 2.1 + 1) / 3)
    assert found.ttft_p50_s == pytest.approx(2.0)
    assert found.itl_mean_s == pytest.approx((0.3 + 0.29 + 0.5) * 10 / 30 / 8)


def test_hit_rate_prefers_engine_counts() -> None:
    assert figures(seen(0, 1, 2)).hit_rate == pytest.approx(0.4)
    assert figures(seen(0, 1, 2), prefix=Prefix(200, 50, "engines")).hit_rate == 0.25
    assert math.isnan(figures(seen(0, 1, 2), prefix=Prefix(0, 0, "nobody")).hit_rate)


def test_run_without_responses_has_no_times() -> None:
    found = figures(seen(0, 0.1, 0.2, error="not whole: {}"))
    assert found.errors == {"not whole": 1}
    assert found.goodput_hz == 0
    assert math.isnan(found.ttft_mean_s)


def event(text: str) -> bytes:
    return b'data: {"choices":[{"text":%b}]}\n\n' % json.dumps(text).encode()


def test_stream_pieces_are_counted_across_reads() -> None:
    got = Seen(10, 4, 0.0)
    ear = Ear(got, 0.0)
    half = event("two")
    for data in (event(""), event("one") + half[:9], half[9:] + event('"'), event("")):
        ear.write(data)
    assert len(got.gaps_s) == 2
    assert got.gaps_s[1] == 0, "what came in one read came at once"
    assert 0 < got.ttft_s < got.end_s


USAGE = b'data: {"usage":{"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":16}}}\n\n'


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, event("a") + USAGE % 2 + b"data: [DONE]\n\n", ""),
        (200, event("a") + USAGE % 1 + b"data: [DONE]\n\n", "incomplete"),
        (200, event("a") + USAGE % 2, "incomplete"),
        (503, b"no worker\n\n", "status 503"),
    ],
)
async def test_failed_responses_are_errors(status: int, body: bytes, error: str) -> None:
    async def answer(request: Asked, reply: ResponseWriter) -> None:
        reply.send(status, body)

    requests, ended = asked((1,), (2,), answer=2), list[Seen]()
    async with HttpServer(answer) as server, HttpClient() as http:
        url = f"http://127.0.0.1:{await server.listen('127.0.0.1', 0)}"
        bodies = [request.body() for request in requests]
        found = await replay(http, url, requests, bodies, ended.append)
    assert [s.error.partition(":")[0] for s in found] == [error, error]
    assert len(ended) == 2
    assert all(s.cached == (16 if status == 200 else None) for s in found)


# What is run and shown.


def test_sweep_has_every_combination() -> None:
    assert grid([]) == [()]
    assert grid(["a=1,2", "b=x"]) == [("a=1", "b=x"), ("a=2", "b=x")]
    with pytest.raises(UsageError, match=r"--sweep 'a=1,,2'"):
        grid(["a=1,,2"])


def test_policies_use_valid_overrides() -> None:
    found = policies(SCALE)
    assert len({tuple(words) for words in found.values()}) == len(found) >= 3
    assert found["round_robin"] == ("router=round_robin",)
    assert "router=kv" in found["kv-approximate"]


def test_results_are_printed_and_plotted(tmp_path: Path) -> None:
    runs = [
        msgspec.structs.replace(figures(seen(0, 0.1, 0.5)), topology=topology, repeat=repeat)
        for topology in map(str, TopologyKind)
        for repeat in range(2)
    ]
    found = Found("a machine", "trace", {"workers": 2}, {}, runs)
    found.oracles = {topology: Oracle(0.3, 0.35, 0.5) for topology in map(str, TopologyKind)}
    assert [table.row_count for table in tables(found)] == [1, 1]
    assert "oracle 35.0 %" in str(next(tables(found)).title)
    draw(found, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def command(tmp_path: Path, *words: str) -> "subprocess.Popen[str]":
    """Started with its temporary files in a folder that can be looked at."""
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    argv = [sys.executable, "-m", "benchmarks.replay", *words]
    return subprocess.Popen(argv, cwd=ROOT, env=env, stdout=-1, stderr=-1, text=True)


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, ...]:
    """Words for a run on two ranks: conversations that come back, ten seconds long at most."""
    rows = (
        line(i * 1000, 2100, 80, 0, *(100 * (i % 3) + j for j in range(1, 4)), 10_000 + i)
        for i in range(24)
    )
    file = trace(tmp_path, *rows)
    byte_tokenizer(tmp_path / "model")
    words = ("--trace", str(file), "--model", str(tmp_path / "model"), "--workers", "2")
    return (
        *words,
        "--compress",
        "20",
        "--cache-tokens",
        "65536",
        "--set",
        "serve.frontend_processes=1",
    )


@pytest.mark.slow
def test_short_replay_runs(small: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--systems", "kv-approximate", "round_robin", "--out", str(out))
    with command(tmp_path, *small, *words) as running:
        shown, err = running.communicate(timeout=HANG_S)
    assert running.returncode == 0, shown + err
    found = msgspec.json.decode((out / "replay.json").read_bytes(), type=Found)
    assert [(r.topology, r.system) for r in found.runs] == [
        (topology, system)
        for topology in ("aggregated", "disaggregated")
        for system in ("kv-approximate", "round_robin")
    ]
    for run in found.runs:
        assert run.requests == 24
        assert not run.errors
        assert run.prefix
        assert run.prefix.told == "engines"
        assert 0 < run.prefix.rate <= found.oracles[run.topology].endless + 1e-9
        assert 0 < run.ttft_p50_s <= run.ttft_p99_s
        assert run.itl_mean_s > 0.015  # modelled: 20 ms
    assert (out / "replay.png").exists()
    assert not list(tmp_path.glob("hpc-dynamo-replay-*")), "its logs are of no use any more"


@pytest.mark.slow
def test_ctrl_c_ends_the_replayed_job(small: tuple[str, ...], tmp_path: Path) -> None:
    words = ("--systems", "round_robin", "--compress", "0.1")
    with command(tmp_path, *small, *words) as running:
        made = "*/0-aggregated-round_robin/replay/attempts/1/"
        until(
            "the job",
            lambda: running.poll() is not None or list(tmp_path.glob(f"{made}endpoint.json")),
        )
        running.send_signal(signal.SIGINT)
        shown, err = running.communicate(timeout=HANG_S)
    assert running.returncode == 130, shown + err
    assert "interrupted" in err
    assert list(tmp_path.glob(f"{made}outcome.json"))


def test_missing_input_is_reported_at_once(tmp_path: Path) -> None:
    with command(tmp_path, "--trace", "nowhere.jsonl", "--model", ".") as running:
        _, err = running.communicate(timeout=HANG_S)
    assert running.returncode not in (0, 1)
    assert "the trace nowhere.jsonl: No such file" in err
    assert "Traceback" not in err
