"""Results of several parts, copied into one file that gets its name only once it is complete."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ResultLocation:
    """Position of a result in a part.

    `finished`: the request will not run again. `void`: it failed before the latest
    `batch.retry_failed=true`.
    """

    file: Path
    offset: int
    size: int
    answered: bool
    finished: bool
    void: bool = False


class MergedOutput:
    """File that gets its name only once it is complete."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._sources: dict[Path, int] = {}

    def __enter__(self) -> "MergedOutput":
        self._file = self._temporary.open("wb")
        return self

    def copy(self, result: ResultLocation) -> None:
        if result.file not in self._sources:
            self._sources[result.file] = os.open(result.file, os.O_RDONLY)
        self._file.write(os.pread(self._sources[result.file], result.size, result.offset))

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
