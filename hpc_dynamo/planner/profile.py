"""The profile of an engine that `hpc-dynamo profile` writes, and its measurements."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from hpc_dynamo import jsonl
from hpc_dynamo.errors import ConfigError
from hpc_dynamo.regular_file import MAX_RECORD_BYTES, read_regular_file

HINT = "`hpc-dynamo profile …` writes profile.json into its run folder"


class Metric(StrEnum):
    """The time that is measured."""

    ttft = "ttft"  # time to first token of a prompt on an idle worker
    itl = "itl"  # time between tokens of `sequences` concurrent responses
    transfer = "transfer"  # from the prefill worker's response to the first token


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A point of the grid. Held-out points measure the error of the interpolation."""

    metric: Metric
    prompt_tokens: int
    cached_tokens: int = 0  # tokens of its start in the prefix cache
    sequences: int = 1
    held_out: bool = False


class Measurement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result at a point. `seconds` is None if the sequences did not run concurrently."""

    point: OperatingPoint
    seconds: float | None
    cached_tokens: int = 0  # as the engine reports, if it does
    context_tokens: float = 0.0  # itl: mean sequence length during the measurement
    size_bytes: int = 0  # transfer: size of the KV cache


class InterpolationError(msgspec.Struct, frozen=True):
    """Relative error of interpolated times, compared with measured ones."""

    mean: float
    worst: float
    count: int


class EngineProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Measurements of one engine and worker shape on one kind of hardware."""

    model: str
    engine: str
    version: str
    hardware: str
    kind: str  # topology; if disaggregated, each point is of the worker of its role
    # Parallel sizes of the decode worker.
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    date: str  # ISO 8601, UTC
    context_tokens: int  # maximum sequence length
    kv_tokens: int  # KV cache of the decode worker; 0: unknown
    max_sequences: int  # maximum decoded at once
    startup_s: float  # from launch to the first served token, slowest worker
    prompt_tokens_per_s: float  # maximum measured
    answer_tokens_per_s: float
    points: tuple[Measurement, ...]
    kv_bytes_per_token: float = 0.0  # 0: no transfer was measured
    transfer_s_per_byte: float = 0.0
    errors: Mapping[Metric, InterpolationError] = {}  # at the held-out points

    @property
    def title(self) -> str:
        """Return a title for plots and tables."""
        shape = (self.tensor_parallel, self.pipeline_parallel, self.data_parallel)
        sizes = " ".join(f"{name}{n}" for name, n in zip(("TP", "PP", "DP"), shape, strict=True))
        version = f" {self.version}" if self.version != self.engine else ""
        return f"{self.model}, {self.engine}{version}, {self.kind}, {sizes}"

    def of(self, metric: Metric, *, held_out: bool = False) -> list[Measurement]:
        """Return the points of a metric that have a time."""
        wanted = (metric, held_out)
        return [
            p for p in self.points if (p.point.metric, p.point.held_out) == wanted and p.seconds
        ]


def load_profile(file: Path) -> EngineProfile:
    """Read a profile. Raises ConfigError for a missing or unusable file."""
    try:
        profile = msgspec.json.decode(read_regular_file(file, MAX_RECORD_BYTES), type=EngineProfile)
    except OSError as e:
        raise ConfigError(f"{file}: cannot be read: {e.strerror}", hint=HINT) from e
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{file}: is not a profile: {e}", hint=HINT) from e
    for metric in (Metric.ttft, Metric.itl):
        if not profile.of(metric):
            raise ConfigError(f"{file}: has no point of {metric}", hint=HINT)
    return profile


def read_measurements(files: Iterable[Path]) -> defaultdict[OperatingPoint, list[Measurement]]:
    """Return the measurements of all attempts by point; incomplete lines are skipped."""
    found = defaultdict[OperatingPoint, list[Measurement]](list)
    for file in files:
        for point in jsonl.read(file, Measurement):
            found[point.point].append(point)
    return found
