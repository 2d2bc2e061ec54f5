"""Results on disk. A result counts once its line, including the newline, is synced to disk.

Each attempt appends to its own part, so that two writers never share a file. A line that a crash
truncated has no newline and is ignored. The last successful line of an id wins. At the end the
parts are merged into one file in the order of the input. `retry_failed` declares the failures so
far void: their requests run again, and responses are kept.

Lines have OpenAI's batch output format: `custom_id`, `response` (`status_code`, `request_id`,
`body`), `error`.
"""

import asyncio
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from hpc_dynamo import jsonl
from hpc_dynamo.batch.input_file import BatchInput, RequestEntry
from hpc_dynamo.batch.merged_output import MergedOutput, ResultLocation
from hpc_dynamo.errors import HpcDynamoError, RequestFailed, file_error
from hpc_dynamo.messages import RetryRound
from hpc_dynamo.run import Run, attempt_of_part, read_json, write_json

SEARCH_BYTES = 1 << 16  # block size of the search for the last newline

log = logging.getLogger(__name__)


class BatchResponse(msgspec.Struct, frozen=True):
    """Response of the engine; the body is unchanged."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class BatchError(msgspec.Struct, frozen=True):
    """Reason why a request failed. `final`: a retry cannot help."""

    code: str
    message: str
    final: bool = False


class OutputLine(msgspec.Struct, frozen=True):
    """One line of output.jsonl, errors.jsonl or a part."""

    id: str
    custom_id: str
    response: BatchResponse | None = None
    error: BatchError | None = None

    @property
    def finished(self) -> bool:
        return self.error is None or self.error.final


def success_line(custom_id: str, body: bytes) -> bytes:
    """Return the output line of a successful request."""
    if b"\n" in body:  # some engines indent their JSON; a result is one line
        body = _as_json(body)
    response = BatchResponse(200, _id("req"), msgspec.Raw(body))
    return msgspec.json.encode(OutputLine(_id("batch_req"), custom_id, response)) + b"\n"


def failure_line(custom_id: str, error: RequestFailed) -> bytes:
    """Return the output line of a failed request."""
    reason = BatchError(str(error.status), error.message, error.final)
    response = BatchResponse(error.status, _id("req"), msgspec.Raw(_as_json(error.body)))
    return msgspec.json.encode(OutputLine(_id("batch_req"), custom_id, response, reason)) + b"\n"


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def _as_json(body: bytes) -> bytes:
    """Return a body as one line of JSON; text that is not JSON becomes a string."""
    try:
        return msgspec.json.encode(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.encode(body.decode(errors="replace"))


class Ledger:
    """Results of all attempts of a run; appends to the part of one execution of an attempt.

    `restarts` is the number of times that Slurm has restarted the job. `record` queues lines,
    `write` flushes them. Both run in one event loop.
    """

    def __init__(self, run: Run, attempt: int, restarts: int = 0) -> None:
        self._run = run
        self._part = run.attempt_results(attempt, restarts)
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._damaged = set[Path]()  # parts with damaged lines that were reported

    def results(self) -> dict[str, ResultLocation]:
        """Return the best result of each id: a later one replaces an earlier unfinished one.

        Reads all parts, which may be gigabytes, line by line. Damaged lines are skipped and
        reported, so that their requests run again.
        """
        best: dict[str, ResultLocation] = {}
        void = self._last_void_attempt()
        for file in self._run.parts():
            for custom_id, result in self._read(file, void=attempt_of_part(file) <= void):
                old = best.get(custom_id)
                if old is None or not old.finished:
                    best[custom_id] = result
        return best

    def _read(self, file: Path, *, void: bool) -> Iterator[tuple[str, ResultLocation]]:
        """Yield the results of a part. Logs a warning at its end if lines were damaged."""
        damaged = list[int]()
        yield from _read(file, damaged, void=void)
        if damaged and file not in self._damaged:
            self._damaged.add(file)
            more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
            what = "%s:%d: a damaged line is skipped%s; its request runs again"
            log.warning(what, file, damaged[0], more)

    def _last_void_attempt(self) -> int:
        """Return the last attempt whose failures are void; 0 if there is none."""
        round_ = read_json(self._run.retry_file, RetryRound)
        return round_.last_attempt if round_ else 0

    def retry_failed(self, requests: BatchInput) -> int:
        """Declare the failures so far void; return the number of requests that run again.

        A retry round that has not ended is resumed instead, and its own failures are kept.
        """
        results = self.results()
        failed = {custom_id for custom_id, r in results.items() if not r.answered}
        to_come = (e for e in requests.entries if (r := results.get(e.custom_id)) is None or r.void)
        if not failed or (self._last_void_attempt() and any(to_come)):
            return 0
        last = max(map(attempt_of_part, self._run.parts()))
        write_json(self._run.retry_file, RetryRound(last_attempt=last))
        return sum(entry.custom_id in failed for entry in requests.entries)

    async def record(self, line: bytes) -> None:
        """Return once the line is on disk. `line` ends with its only newline."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((line, future))
        self._wake.set()
        await future

    async def write(self) -> None:
        """Write recorded lines until cancelled, with one flush for all that are waiting.

        Raises HpcDynamoError if the lines cannot be written.
        """
        try:
            with self._part.open("ab+") as file:
                _truncate_incomplete_line(file.fileno())
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    batch, self._waiting = self._waiting, []
                    await self._flush(file.fileno(), [line for line, _ in batch])
                    self._require_linked(file.fileno())
                    for _, future in batch:
                        if not future.done():
                            future.set_result(None)
        except OSError as e:
            raise _write_error(e, self._part) from e

    def _require_linked(self, handle: int) -> None:
        """Raise HpcDynamoError if the part was deleted: writes to it still succeed."""
        if not os.fstat(handle).st_nlink:
            what = f"{self._part} was deleted while the batch runs"
            hint = "run the same command again; the results in deleted files are lost"
            raise HpcDynamoError(what, hint=hint)

    async def _flush(self, handle: int, lines: list[bytes]) -> None:
        """Write in a thread. On cancellation wait for it, because the file is closed afterwards."""
        writing = asyncio.ensure_future(asyncio.to_thread(jsonl.write_all, handle, b"".join(lines)))
        try:
            await asyncio.shield(writing)
        finally:
            await asyncio.wait({writing})

    def unfinished(
        self, requests: BatchInput, results: Mapping[str, ResultLocation] | None = None
    ) -> list[RequestEntry]:
        """Return the requests without a result, or with a failure that a retry may fix."""
        known = self.results() if results is None else results
        done = {custom_id for custom_id, result in known.items() if result.finished}
        return [entry for entry in requests.entries if entry.custom_id not in done]

    def merge(self, ids: Iterable[str]) -> tuple[int, int]:
        """Write output.jsonl and errors.jsonl in the order of `ids`; return the lines of each."""
        results, answered, failed = self.results(), 0, 0
        output, errors = (MergedOutput(f) for f in (self._run.output, self._run.errors))
        try:
            with output, errors:
                for custom_id in ids:
                    result = results[custom_id]
                    (output if result.answered else errors).copy(result)
                    answered, failed = answered + result.answered, failed + (not result.answered)
        except OSError as e:
            raise _write_error(e, self._run.output) from e
        return answered, failed


def _write_error(error: OSError, file: Path) -> HpcDynamoError:
    """Return the error for a file that could not be written. That of a full disk has no name."""
    error.filename = error.filename or str(file)
    known = file_error(error) or HpcDynamoError(f"{file} cannot be written: {error}")
    known.hint = f"{known.hint or 'check the disk'}; run the same command again to resume"
    return known


def _truncate_incomplete_line(handle: int) -> None:
    """Remove an incomplete last line: a restarted head appends to the part of the earlier one."""
    end = os.fstat(handle).st_size
    while end:
        start = max(0, end - SEARCH_BYTES)
        newline = os.pread(handle, end - start, start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
            break
    os.ftruncate(handle, end)


def _read(file: Path, damaged: list[int], *, void: bool) -> Iterator[tuple[str, ResultLocation]]:
    """Yield id and position of the complete lines of a part; its failures may be `void`.

    The numbers of lines that cannot be read are appended to `damaged`. A file system may leave
    zeros after a power failure.
    """
    decoder, offset = msgspec.json.Decoder(OutputLine), 0
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            offset += len(raw)
            if not raw.endswith(b"\n"):  # truncated by a crash
                continue
            try:
                line = decoder.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError):
                damaged.append(number)
                continue
            answered = line.error is None
            finished = answered or (line.finished and not void)
            is_void = void and not answered
            start = offset - len(raw)
            yield line.custom_id, ResultLocation(file, start, len(raw), answered, finished, is_void)


def read_failures(errors: Path) -> Iterator[OutputLine]:
    """Yield the lines of an errors.jsonl."""
    with errors.open("rb") as stream:
        for raw in stream:
            yield msgspec.json.decode(raw, type=OutputLine)
