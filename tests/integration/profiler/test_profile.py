"""`hpc-dynamo profile` on this machine: real agents, real engines, real NIXL."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from hpc_dynamo.engines.simulator.adapter import BLOCK_TOKENS
from hpc_dynamo.head.workloads.profile import ROUNDS
from hpc_dynamo.planner.profile import (
    EngineProfile,
    Metric,
    OperatingPoint,
    load_profile,
    read_measurements,
)
from hpc_dynamo.profiler.client import TimedStream
from hpc_dynamo.profiler.grid import ProfileLimits, operating_points
from tests.support.runs import HANG_S, SIMULATOR, hpc_dynamo, latest, until, until_results
from tests.support.terminal import ends, on_a_terminal

pytestmark = pytest.mark.slow

# The smallest worker with points of every metric.
SMALL = (
    "engine.args.max-model-len=192",
    "engine.args.num-blocks=24",
    "engine.args.timing=instant",
    "engine.max_num_seqs=2",
)
WORDS = ("profile", *SIMULATOR, *SMALL, "name=small", "runs_dir=runs")
KV_TOKENS = 24 * BLOCK_TOKENS
KV_BYTES = 1024  # per token, the simulator's default


def points(*, transfers: bool, context_tokens: int = 192) -> list[OperatingPoint]:
    limits = ProfileLimits(
        context_tokens=context_tokens,
        max_sequences=2,
        block_tokens=BLOCK_TOKENS,
        kv_tokens=KV_TOKENS,
        transfers=transfers,
    )
    return operating_points(limits)


def complete(run: Path, *, transfers: bool, context_tokens: int = 192) -> EngineProfile:
    """Assert that each point was measured once, with the expected cached tokens."""
    profile = load_profile(run / "profile.json")
    expected = points(transfers=transfers, context_tokens=context_tokens)
    assert [p.point for p in profile.points] == expected
    assert all(p.seconds for p in profile.points), "sequences did not fit at once"
    for point in profile.points:
        assert point.cached_tokens == point.point.cached_tokens
    assert set(profile.errors) == {p.point.metric for p in profile.points}
    return profile


@pytest.mark.slow
def test_two_workers_are_profiled_with_transfers(tmp_path: Path) -> None:
    done = hpc_dynamo(*WORDS, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    profile = complete(tmp_path / "runs/small", transfers=True)
    shape = (profile.model, profile.engine, profile.kind, profile.tensor_parallel)
    assert shape == ("simulated", "simulator", "disaggregated", 1)
    assert (profile.context_tokens, profile.kv_tokens, profile.max_sequences) == (192, KV_TOKENS, 2)
    assert profile.kv_bytes_per_token == KV_BYTES
    assert profile.hardware.startswith(f"{os.cpu_count()} x ")
    assert profile.startup_s > 0
    assert profile.prompt_tokens_per_s > 0
    assert profile.answer_tokens_per_s > 0
    for point in (p for p in profile.points if p.point.metric is Metric.transfer):
        blocks = -(-point.point.prompt_tokens // BLOCK_TOKENS)
        assert point.size_bytes == blocks * BLOCK_TOKENS * KV_BYTES
    assert (tmp_path / "runs/small/profile.png").read_bytes().startswith(b"\x89PNG")
    for said in ("TTFT, interpolated", "ITL, interpolated", "KV transfer", "profile.json"):
        assert said in done.stdout
    again = hpc_dynamo(*WORDS, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stdout
    assert "TTFT, interpolated" in again.stdout
    other = hpc_dynamo(*WORDS, "engine.args.time-scale=2", cwd=tmp_path)
    assert other.returncode == 3
    assert "engine.args.time-scale: not set → 2" in other.stderr
    assert "overwrite=true" in other.stderr


@pytest.mark.slow
def test_profile_on_a_terminal_shows_a_bar_and_needs_no_matplotlib(tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without/matplotlib.py").write_text("raise ImportError('not there')\n")
    environment = {"PYTHONPATH": str(tmp_path / "without")}
    words = (*WORDS, "engine.args.max-model-len=128", "topology=aggregated")
    with on_a_terminal(words, tmp_path, environment) as process:
        process.expect("points/s", timeout=HANG_S)
        said = r"no plot: pictures need matplotlib, pip install 'hpc-dynamo\[draw\]'"
        process.expect(said, timeout=HANG_S)
        process.expect("ITL, interpolated")
        assert ends(process) == 0
    profile = complete(tmp_path / "runs/small", transfers=False, context_tokens=128)
    assert profile.kv_bytes_per_token == 0
    assert not (tmp_path / "runs/small/profile.png").exists()


def _gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def part_is_open(part: Path) -> bool:
    """Return True if any process has the file open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if descriptor.samefile(part):
                return True
    return False


@pytest.mark.slow
def test_profile_resumes_after_kill_9(tmp_path: Path) -> None:
    run = tmp_path / "runs/small"
    started = hpc_dynamo(*WORDS, "--detach", cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    until_results(run, 2 * 3)
    attempt = latest(run)
    job, pids = attempt.job(), [record.pid for record in attempt.nodes()]
    assert job is not None
    for pid in (job.pid, *pids):
        os.kill(pid, signal.SIGKILL)
    until("the agents gone", lambda: all(map(_gone, pids)))
    part = run / "parts/1.jsonl"
    until("the head gone", lambda: not part_is_open(part))
    saved = read_measurements([part])
    count = sum(map(len, saved.values()))
    everything = ROUNDS * len(points(transfers=True))
    assert 3 <= count < everything, "it had ended before it was killed"
    with part.open("ab") as file:
        file.write(b'{"point": {"metric": "ttft", "prom')  # as after a power failure
    again = hpc_dynamo(*WORDS, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    complete(run, transfers=True)
    new = read_measurements([run / "parts/2.jsonl"])
    assert count + sum(map(len, new.values())) == everything, "measured again"
    assert all(len(saved[spot]) + len(new[spot]) == ROUNDS for spot in points(transfers=True))
    status = latest(run).status()
    assert status is not None
    assert status.progress.resumed == count


def test_walltime_ends_a_profile_after_a_point(tmp_path: Path) -> None:
    run = tmp_path / "runs/small"
    assert hpc_dynamo(*WORDS, "--detach", cwd=tmp_path).returncode == 0
    until_results(run, 2)
    attempt = latest(run)
    os.kill(next(iter(attempt.nodes())).pid, signal.SIGUSR2)  # as Slurm signals it
    outcome = until("the outcome", attempt.outcome)
    assert outcome.exit_code == 1
    assert "run the same command again to resume" in outcome.message
    assert not (run / "profile.json").exists()


def test_dead_engine_ends_a_profile_with_its_log(tmp_path: Path) -> None:
    words = (*WORDS, "engine.args.fail-after-requests=9", "topology=aggregated")
    done = hpc_dynamo(*words, cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert "a worker failed during the measurement" in done.stderr
    assert "run the same command again to resume" in done.stderr
    assert "attempts/1/logs" in done.stderr


def test_too_short_context_is_not_retried(tmp_path: Path) -> None:
    words = (*WORDS, "engine.args.max-model-len=90", "topology=aggregated")
    done = hpc_dynamo(*words, cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "sequences of 90 tokens are too short" in done.stderr
    assert "max-model-len=96" in done.stderr


def test_tokens_arriving_together_are_counted_each() -> None:
    stream = TimedStream(sent_at=0.0)
    events = [b'{"choices":[{}],"usage":{"completion_tokens":%d}}' % n for n in (1, 3)]
    last = b'{"choices":[],"usage":{"prompt_tokens_details":{"cached_tokens":16}}}'
    for event in (*events, last, b"[DONE]"):
        stream.write(b"data: " + event[:20])
        stream.write(event[20:] + b"\n\n")
    stream.read()
    assert len(stream.token_at) == 3
    assert stream.token_at[0] < stream.token_at[1] == stream.token_at[2]
    assert stream.cached_tokens == 16


def test_stream_without_counts_has_one_token_per_event() -> None:
    stream = TimedStream(sent_at=0.0)
    stream.write(b': ping\n\ndata: {"choices":[{}]}\n\ndata: {"choices":[{}]}\n\ndata: [DONE]\n\n')
    stream.read()
    assert len(stream.token_at) == 2
    assert stream.cached_tokens is None


def test_profile_help_has_examples(tmp_path: Path) -> None:
    done = hpc_dynamo("profile", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for said in ("profile.json", "planner.profile=", "to resume the profile"):
        assert said in done.stdout
