"""Results on disk: acknowledged lines survive crashes, and incomplete lines are ignored."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.batch.input_file import read_input
from hpc_dynamo.batch.ledger import SEARCH_BYTES, Ledger, failure_line, success_line
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.run import Run, attempt_of_part
from tests.support.runs import HANG_S, write_prompts


@contextlib.asynccontextmanager
async def writing(run: Run, attempt: int) -> AsyncIterator[Ledger]:
    ledger = Ledger(run, attempt)
    writer = asyncio.create_task(ledger.write())
    try:
        yield ledger
    finally:
        writer.cancel()
        await asyncio.wait([writer])


def good(custom_id: str, text: str = "x") -> bytes:
    return success_line(custom_id, json.dumps({"text": text}).encode())


def bad(custom_id: str, status: int = 500, body: bytes = b"oops") -> bytes:
    return failure_line(custom_id, RequestFailed("it broke", status=status, body=body))


def put(run: Run, part: int, *lines: bytes) -> None:
    """Write the part of an earlier attempt."""
    with run.attempt_results(part).open("ab") as file:
        file.writelines(lines)


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def states(run: Run) -> dict[str, str]:
    """Return good, open (will run again) or refused, by id."""
    spots = Ledger(run, 99).results()
    return {
        i: "good" if s.answered else "refused" if s.finished else "open" for i, s in spots.items()
    }


async def test_record_returns_after_line_is_on_disk(run: Run) -> None:
    async with writing(run, 1) as ledger:
        for i in range(20):
            await ledger.record(good(str(i)))
            assert rows(run.attempt_results(1))[-1]["custom_id"] == str(i)


async def test_concurrent_records_are_all_written(run: Run) -> None:
    async with writing(run, 1) as ledger, asyncio.TaskGroup() as group:
        for i in range(500):
            group.create_task(ledger.record(good(str(i))))
    assert sorted(states(run), key=int) == [str(i) for i in range(500)]


def test_output_line_has_openai_batch_format() -> None:
    row = json.loads(success_line("my id", b'{"choices": [1.0, "\\u00fc"]}'))
    assert row["custom_id"] == "my id"
    assert row["error"] is None
    assert row["response"]["status_code"] == 200
    assert row["response"]["body"] == {"choices": [1.0, "ü"]}
    assert row["response"]["request_id"].startswith("req_")
    assert row["id"].startswith("batch_req_")


def test_success_line_keeps_engine_body_unchanged() -> None:
    body = b'{"a":1.50,  "b":"\\u00fc","c":12345678901234567890123}'
    assert body in success_line("a", body)


@pytest.mark.parametrize(
    "body", [b"", b"not json", b"\xff\xfe", b'{\n  "error": "x"\n}', b'"\n', b"[1]"]
)
def test_failure_with_any_body_is_one_line(body: bytes) -> None:
    line = bad("a", 400, body)
    assert line.count(b"\n") == 1
    row = json.loads(line)
    assert row["response"]["status_code"] == 400
    assert row["error"] == {"code": "400", "message": "it broke", "final": True}


def test_success_with_indented_body_is_one_line() -> None:
    line = success_line("a", b'{\n  "text": "x"\n}\n')
    assert line.count(b"\n") == 1
    assert json.loads(line)["response"]["body"] == {"text": "x"}


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ([good("a")], "good"),
        ([bad("a")], "open"),
        ([bad("a", 400)], "refused"),
        ([bad("a"), good("a")], "good"),
        ([bad("a"), bad("a"), bad("a", 400)], "refused"),
        ([good("a"), bad("a")], "good"),
        ([good("a"), bad("a", 400)], "good"),
        ([bad("a", 400), bad("a")], "refused"),
    ],
)
@pytest.mark.parametrize("parts", [1, 2])
def test_results_of_several_attempts_select_the_best(
    run: Run, lines: list[bytes], state: str, parts: int
) -> None:
    """The best result is the same in one attempt and over several."""
    for number, line in enumerate(lines):
        put(run, 1 + number * (parts - 1), line)
    assert states(run) == {"a": state}


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_transient_failure_is_unfinished(run: Run, status: int) -> None:
    put(run, 1, bad("a", status))
    assert states(run) == {"a": "open"}


def test_attempts_are_ordered_by_number(run: Run) -> None:
    put(run, 9, bad("a", body=b'"old"'))
    put(run, 10, bad("a", body=b'"new"'))
    Ledger(run, 11).merge(["a"])
    assert rows(run.errors)[0]["response"]["body"] == "new"


def test_execution_after_a_restart_by_slurm_has_a_part_of_its_own(run: Run) -> None:
    """An execution that Slurm cannot end may append to the part of the attempt meanwhile."""
    parts = [run.attempt_results(*which) for which in ((1, 0), (1, 2), (1, 10), (2, 0))]
    for name, part in zip("abcd", parts, strict=True):
        part.write_bytes(good(name) + bad("x", body=name.encode()) + good("y", name))
    assert run.parts() == parts
    assert {attempt_of_part(part) for part in parts[:3]} == {1}
    assert Ledger(run, 3).merge("abcdxy") == (5, 1)
    assert rows(run.errors)[0]["response"]["body"] == "d"
    answers = {row["custom_id"]: row["response"]["body"]["text"] for row in rows(run.output)}
    assert answers["y"] == "a"  # each id once; the first answer counts


@given(cut=st.integers(0, 400), parts=st.integers(1, 3))
async def test_incomplete_line_is_ignored_and_truncated(
    tmp_path_factory: pytest.TempPathFactory, cut: int, parts: int
) -> None:
    """A requeued job keeps its attempt number and appends to its part."""
    run = Run(tmp_path_factory.mktemp("torn"))
    run.results.mkdir()
    whole = [good("a"), bad("b"), good("ü")]
    data = b"".join(whole)[:cut]
    put(run, parts, data)
    survived = data.count(b"\n")
    assert len(states(run)) == survived
    async with writing(run, parts) as ledger:
        await ledger.record(good("c"))
    assert [r["custom_id"] for r in rows(run.attempt_results(parts))] == [
        *["a", "b", "ü"][:survived],
        "c",
    ]


async def test_incomplete_line_of_other_attempt_is_kept(run: Run) -> None:
    torn = good("a") + good("b")[:-5]
    put(run, 1, torn)
    async with writing(run, 2) as ledger:
        await ledger.record(good("b"))
    assert run.attempt_results(1).read_bytes() == torn
    assert states(run) == {"a": "good", "b": "good"}


DAMAGE = {
    "zeros": bytes(8) + b"\n",
    "zeros before a line": bytes(8) + good("a"),
    "half a line": good("a")[:40] + b"\n",
    "invalid UTF-8": good("a").replace(b"custom_id", b"\xff\xfe"),
    "another record": b'{"custom_id": "a"}\n',
    "number": b"5\n",
    "empty line": b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_damaged_line_is_skipped_with_a_warning(
    run: Run, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """File systems leave zeros after a power failure. The request runs again."""
    put(run, 1, good("x"), damage, good("y"), damage)
    part = run.attempt_results(1)
    ledger = Ledger(run, 2)
    for _ in range(2):  # one warning only
        assert sorted(ledger.results()) == ["x", "y"]
    expected = f"{part}:2: a damaged line is skipped (and 1 more); its request runs again"
    logged = [r.getMessage() for r in caplog.records if r.name == Ledger.__module__]
    assert logged == [expected]
    async with writing(run, 1) as same_attempt:
        await same_attempt.record(good("a"))
    assert states(run) == dict.fromkeys("xya", "good")
    assert ledger.merge(["a", "x", "y"]) == (3, 0)


async def test_incomplete_line_is_found_in_a_large_part(run: Run) -> None:
    torn = b"x" * (3 * SEARCH_BYTES)
    put(run, 1, good("a"), torn)
    async with writing(run, 1) as ledger:
        await ledger.record(good("b"))
    assert [row["custom_id"] for row in rows(run.attempt_results(1))] == ["a", "b"]


async def test_event_loop_runs_while_results_are_read(run: Run, tmp_path: Path) -> None:
    """Heartbeats continue. The head reads in a thread; the reader must not hold the interpreter."""
    put(run, 1, *(good(str(i), "x" * 8000) for i in range(5000)))
    write_prompts(tmp_path / "p.jsonl", 1)
    requests = read_input(tmp_path / "p.jsonl")
    reading = asyncio.create_task(asyncio.to_thread(Ledger(run, 2).unfinished, requests))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert len(reading.result()) == 1
    assert turns > 3


def test_merge_writes_input_order_and_separates_failures(run: Run) -> None:
    put(run, 1, good("d"), bad("b"), bad("a", 400))
    put(run, 2, good("c", "second"), good("b", "second"))
    assert Ledger(run, 3).merge(["a", "b", "c", "d"]) == (3, 1)
    assert [r["custom_id"] for r in rows(run.output)] == ["b", "c", "d"]
    assert rows(run.output)[0]["response"]["body"] == {"text": "second"}
    assert [r["custom_id"] for r in rows(run.errors)] == ["a"]


def test_merge_omits_ids_that_are_not_in_the_input(run: Run) -> None:
    put(run, 1, good("a"), good("old"))
    assert Ledger(run, 1).merge(["a"]) == (1, 0)
    assert [r["custom_id"] for r in rows(run.output)] == ["a"]


def test_interrupted_merge_keeps_old_files(run: Run) -> None:
    put(run, 1, good("a"), good("b"), bad("c", 400), bad("d", 400))
    ledger = Ledger(run, 1)
    ledger.merge(["a", "b", "c", "d"])
    before = {f: f.read_bytes() for f in run.path.iterdir() if f.is_file()}
    with pytest.raises(KeyError):
        ledger.merge(["b", "d", "an id without a result"])
    assert {f: f.read_bytes() for f in run.path.iterdir() if f.is_file()} == before


@given(
    written=st.lists(
        st.tuples(st.text(min_size=1), st.sampled_from([200, 400, 500]), st.integers(1, 3))
    )
)
def test_merge_writes_every_id_once(
    tmp_path_factory: pytest.TempPathFactory, written: list[tuple[str, int, int]]
) -> None:
    run = Run(tmp_path_factory.mktemp("merge"))
    run.results.mkdir()
    for custom_id, status, part in written:
        put(run, part, good(custom_id) if status == 200 else bad(custom_id, status))
    ids = list(dict.fromkeys(i for i, _, _ in written))
    counts = Ledger(run, 9).merge(ids)
    output, errors = rows(run.output), rows(run.errors)
    assert counts == (len(output), len(errors))
    assert sorted(r["custom_id"] for r in output + errors) == sorted(ids)
    for result in (output, errors):
        places = [ids.index(r["custom_id"]) for r in result]
        assert places == sorted(places), "not in the input's order"
    # A later result replaces a 500, which may be retried; the first final one stays.
    by_part = sorted(written, key=lambda w: w[2])
    final = {i: s for i, s, _ in reversed(by_part) if s != 500}
    assert {r["custom_id"] for r in output} == {i for i, s in final.items() if s == 200}


WRITER = """
import asyncio, sys
from pathlib import Path
from hpc_dynamo.batch.ledger import Ledger, success_line
from hpc_dynamo.run import Run
from tests.support.runs import write_prompts

async def one(ledger, worker):
    for i in range(10**9):
        custom_id = f"{worker}-{i}"
        await ledger.record(success_line(custom_id, b'{"text": "' + b"x" * (i % 700) + b'"}'))
        print(custom_id, flush=True)

async def main():
    ledger = Ledger(Run(Path(sys.argv[1])), 1)
    async with asyncio.TaskGroup() as group:
        group.create_task(ledger.write())
        for worker in range(16):
            group.create_task(one(ledger, worker))

asyncio.run(main())
"""


@pytest.mark.parametrize("enough", [1, 300])
def test_killed_writer_keeps_acknowledged_lines(run: Run, enough: int) -> None:
    argv = [sys.executable, "-c", WRITER, str(run.path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        acknowledged = [writer.stdout.readline() for _ in range(enough)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [line for line in writer.stdout if line.endswith(b"\n")]
    assert writer.returncode == -signal.SIGKILL
    ids = {line.decode().strip() for line in acknowledged}
    assert len(ids) >= enough
    assert ids <= states(run).keys()


FULL_DISK = """
import asyncio, resource, sys
from pathlib import Path
from hpc_dynamo.batch.ledger import Ledger, success_line
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.run import Run
from tests.support.runs import write_prompts

async def main():
    ledger = Ledger(Run(Path(sys.argv[1])), 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # further bytes fail: EFBIG
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(ledger.write())
        for i in range(100):
            await ledger.record(success_line(str(i), b'{"text": "' + b"x" * 90 + b'"}'))
            print(i, flush=True)

try:
    asyncio.run(main())
except* HpcDynamoError as group:
    print("told", group.exceptions[0].message)
"""


def test_full_disk_raises_and_keeps_acknowledged_lines(run: Run) -> None:
    argv = [sys.executable, "-c", FULL_DISK, str(run.path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=HANG_S)
    *acknowledged, last = done.stdout.splitlines()
    assert last == f"told {run.attempt_results(1)}: the file is larger than its limit", done.stderr
    assert acknowledged
    assert set(acknowledged) == states(run).keys()
