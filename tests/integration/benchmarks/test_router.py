"""benchmarks.router on a short trace, without Dynamo's index."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.router.workload import BLOCK, BLOCKS_PER_ID, Engines, long_prompts, read
from hpc_dynamo.kv.events import BlockRemoved, BlockStored, decode_events


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two conversations of two turns, one of them with a prompt of more than 8,000 tokens."""
    turns = [[0, 1], [0, 2], [0, 1, 3], [0, 2, *range(10, 30)]]
    file = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 0, "output_length": 40, "hash_ids": ids} for ids in turns]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.router", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_benchmark_prints_trace_and_fill_tables(trace: Path) -> None:
    done = ran("--quick", "--trace", str(trace), "--sides", "hpc-dynamo")
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if "share of the blocks found" in line]
    assert [line.split()[-2] for line in found] == ["1.00", "1.00"]
    assert "events of prompts, batches/s" in done.stdout
    assert "bytes per block (resident)" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sides", "nobody"], "hpc-dynamo"),
        (["--sides", "hpc-dynamo", "--trace", "/nowhere"], "--trace FILE"),
    ],
)
def test_invalid_arguments_are_reported(words: list[str], said: str) -> None:
    done = ran(*words)
    assert done.returncode
    assert said in done.stderr


def test_modelled_engines_publish_only_new_blocks(trace: Path) -> None:
    engines, requests = Engines(read(trace, 0), 1), read(trace, 0)
    batches = [*engines.prompts()]
    assert [b.blocks // BLOCKS_PER_ID for b in batches] == [2, 1, 1, 20]
    stored = [event for b in batches for event in decode_events(b.payload).events]
    assert [type(event) for event in stored] == [BlockStored] * 4
    first, second, third, _ = (e for e in stored if isinstance(e, BlockStored))
    assert first.parent_block_hash is None
    assert second.parent_block_hash == first.block_hashes[BLOCKS_PER_ID - 1]
    assert third.parent_block_hash == first.block_hashes[-1]
    assert len(first.token_ids) == len(first.block_hashes) * BLOCK
    assert len([*engines.answers()]) == 4 * (40 // BLOCK)
    gone = [e for b in engines.evictions() for e in decode_events(b.payload).events]
    keys = {key for event in gone if isinstance(event, BlockRemoved) for key in event.block_hashes}
    assert len(keys) == len(gone) == 24 * BLOCKS_PER_ID
    assert len(long_prompts(requests)) == 1
