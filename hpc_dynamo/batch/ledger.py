"""Results on disk: a result counts when its line and newline have been flushed.

Every attempt appends to a part of its own, so that no two writers ever share a file. A line
that a crash tore has no newline and is not read. The last good line of an id wins. When all
is done the parts become one file in the input's order. `retry_failed` declares the failures so
far void: their requests run again, answers are kept.

Lines are of OpenAI's batch output format: `custom_id`, `response` (`status_code`,
`request_id`, `body`), `error`.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from hpc_dynamo import jsonl
from hpc_dynamo.batch.input_file import BatchInput, RequestEntry
from hpc_dynamo.errors import HpcDynamoError, RequestFailed, file_error
from hpc_dynamo.messages import RetryRound
from hpc_dynamo.run import Run, read_json, write_json


class BatchResponse(msgspec.Struct, frozen=True):
    """The engine's answer, byte for byte."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchError(msgspec.Struct, frozen=True):
    """Why there is no good answer. `final`: trying again cannot help."""

    code: str
    message: str
    final: bool = False


class OutputLine(msgspec.Struct, frozen=True):
    """One line of the output."""

    id: str
    custom_id: str
    response: BatchResponse | None = None
    error: BatchError | None = None

    @property
    def finished(self) -> bool:
        return self.error is None or self.error.final


@dataclass(frozen=True, slots=True)
class ResultLocation:
    """Position of a result. `finished`: it will not run again. `void`: a failure from before
    the latest `batch.retry_failed=true`."""

    file: Path
    offset: int
    size: int
    answered: bool
    finished: bool
    void: bool = False


def success_line(custom_id: str, body: bytes) -> bytes:
    """The output line of an answered request."""
    if b"\n" in body:  # an engine that prints prettily; a result is one line
        body = _as_json(body)
    response = BatchResponse(200, _id("req"), msgspec.Raw(body))
    return msgspec.json.encode(OutputLine(_id("batch_req"), custom_id, response)) + b"\n"


def failure_line(custom_id: str, error: RequestFailed) -> bytes:
    """The output line of a request that was given up."""
    why = BatchError(str(error.status), error.message, error.final)
    response = BatchResponse(error.status, _id("req"), msgspec.Raw(_as_json(error.body)))
    return msgspec.json.encode(OutputLine(_id("batch_req"), custom_id, response, why)) + b"\n"


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def _as_json(body: bytes) -> bytes:
    """One line of JSON, whatever an engine answered."""
    try:
        return msgspec.json.encode(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.encode(body.decode(errors="replace"))


class Ledger:
    """The results of a run over all its attempts; appends to the part of this one."""

    def __init__(self, run: Run, attempt: int) -> None:
        self._run = run
        self._part = run.attempt_results(attempt)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()

    def results(self) -> dict[str, ResultLocation]:
        """The best result of each id so far: later beats earlier, unless it is worse."""
        best: dict[str, ResultLocation] = {}
        void = self._void()
        for file in sorted(self._run.results.glob("*.jsonl"), key=lambda p: int(p.stem)):
            for custom_id, spot in _read(file, void=int(file.stem) <= void):
                old = best.get(custom_id)
                if old is None or not old.finished:
                    best[custom_id] = spot
        return best

    def _void(self) -> int:
        """Return the last attempt whose failures are void; 0 if there is none."""
        retry = read_json(self._run.retry_file, RetryRound)
        return retry.last_attempt if retry else 0

    def retry_failed(self, requests: BatchInput) -> int:
        """Declare the failures so far void; return how many requests run again because of it.

        A round that has not ended is resumed instead: its own failures are kept.
        """
        spots = self.results()
        failed = {custom_id for custom_id, spot in spots.items() if not spot.answered}
        to_come = (e for e in requests.entries if (s := spots.get(e.custom_id)) is None or s.void)
        if not failed or (self._void() and any(to_come)):
            return 0
        last = max(int(file.stem) for file in self._run.results.glob("*.jsonl"))
        write_json(self._run.retry_file, RetryRound(last_attempt=last, requested_at=time.time()))
        return sum(entry.custom_id in failed for entry in requests.entries)

    async def record(self, line: bytes) -> None:
        """Returns when the line is on disk. `line` ends with its only newline."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((line, future))
        self._wake.set()
        await future

    async def write(self) -> None:
        """The writer: one flush for all lines that came during the last. Runs until cancelled.

        Raises HpcDynamoError where the disk does not take them.
        """
        try:
            with self._part.open("ab") as file:
                _cut_torn_tail(self._part)
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    batch, self._waiting = self._waiting, []
                    await self._flush(file.fileno(), [line for line, _ in batch])
                    for _, future in batch:
                        if not future.done():
                            future.set_result(None)
        except OSError as e:
            e.filename = e.filename or str(self._part)
            known = file_error(e) or HpcDynamoError(f"{self._part} cannot be written: {e}")
            known.hint = f"{known.hint or 'the disk'}; run the same command again to resume"
            raise known from e

    async def _flush(self, handle: int, lines: list[bytes]) -> None:
        """Write in a thread; when cancelled, wait for it, since the file is closed after us."""
        writing = asyncio.ensure_future(asyncio.to_thread(jsonl.write_all, handle, b"".join(lines)))
        try:
            await asyncio.shield(writing)
        finally:
            await asyncio.wait({writing})

    def unfinished(
        self, requests: BatchInput, spots: Mapping[str, ResultLocation] | None = None
    ) -> list[RequestEntry]:
        """The requests without a result, or with one that another try may better."""
        known = self.results() if spots is None else spots
        done = {custom_id for custom_id, spot in known.items() if spot.finished}
        return [entry for entry in requests.entries if entry.custom_id not in done]

    def merge(self, ids: Iterable[str]) -> tuple[int, int]:
        """Write output.jsonl and errors.jsonl in the order of `ids`; how many went to each."""
        spots, good, bad = self.results(), 0, 0
        output, errors = (_Replacement(f) for f in (self._run.output, self._run.errors))
        try:
            with output, errors:
                for custom_id in ids:
                    spot = spots[custom_id]
                    (output if spot.answered else errors).copy(spot)
                    good, bad = good + spot.answered, bad + (not spot.answered)
        except OSError as e:  # the error of a full disk has no file name
            e.filename = e.filename or str(self._run.output)
            raise
        return good, bad


def _cut_torn_tail(part: Path) -> None:
    """A requeued job appends to the part of its former life, which may have died in a line."""
    whole = max((spot.offset + spot.size for _, spot in _read(part)), default=0)
    os.truncate(part, whole)


def _read(file: Path, *, void: bool = False) -> Iterator[tuple[str, ResultLocation]]:
    """Yield the complete lines of a part; its failures may be `void`."""
    offset = 0
    with file.open("rb") as stream:
        for raw in stream:
            if raw.endswith(b"\n"):  # else a crash tore it
                line = msgspec.json.decode(raw, type=OutputLine)
                good = line.error is None
                finished = good or (line.finished and not void)
                spot = ResultLocation(file, offset, len(raw), good, finished, void and not good)
                yield line.custom_id, spot
            offset += len(raw)


def read_failures(errors: Path) -> Iterator[OutputLine]:
    """Yield the lines of an errors.jsonl."""
    with errors.open("rb") as stream:
        for raw in stream:
            yield msgspec.json.decode(raw, type=OutputLine)


class _Replacement:
    """A file that takes its name only once it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._sources: dict[Path, int] = {}

    def __enter__(self) -> "_Replacement":
        self._file = self._temporary.open("wb")
        return self

    def copy(self, spot: ResultLocation) -> None:
        if spot.file not in self._sources:
            self._sources[spot.file] = os.open(spot.file, os.O_RDONLY)
        self._file.write(os.pread(self._sources[spot.file], spot.size, spot.offset))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for handle in self._sources.values():
            os.close(handle)
        try:
            with self._file:
                self._file.flush()
                os.fsync(self._file.fileno())
            if error is None:
                self._temporary.rename(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)
