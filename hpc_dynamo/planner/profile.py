"""What `hpc-dynamo profile` measures of one worker: one JSON file, and its points on the way."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

from hpc_dynamo import jsonl
from hpc_dynamo.errors import ConfigError

HINT = "hpc-dynamo profile … writes one, profile.json in its run folder"


class Metric(StrEnum):
    """Which time a point is of."""

    ttft = "ttft"  # of a prompt on a worker that does nothing else
    itl = "itl"  # where `sequences` answers are made at once
    transfer = "transfer"  # first token of a decode worker, after the prefill worker has answered


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place in the grid. A held-out one is never interpolated from: it tells the error."""

    metric: Metric
    prompt_tokens: int
    cached_tokens: int = 0  # its beginning, which was asked before
    sequences: int = 1
    held_out: bool = False


class Measurement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured there. `seconds` is None where the sequences did not fit at once."""

    spot: OperatingPoint
    seconds: float | None
    cached_tokens: int = 0  # by the engine's word, where it has one
    context_tokens: float = 0.0  # itl: mean length of a sequence meanwhile
    size_bytes: int = 0  # transfer: of the KV cache that moved


class InterpolationError(msgspec.Struct, frozen=True):
    """Of interpolated against measured times, as shares of the measured."""

    mean: float
    worst: float
    count: int


class EngineProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One engine and worker shape on one kind of hardware."""

    model: str
    engine: str
    version: str
    hardware: str
    kind: str  # of the topology: aggregated, or disaggregated (each point of the role it is for)
    tensor_parallel: int  # of the worker that decodes, as the next two
    pipeline_parallel: int
    data_parallel: int
    date: str  # ISO 8601, UTC
    context_tokens: int  # of the longest sequence
    kv_tokens: int  # that the KV cache of the worker that decodes holds; 0: it did not say
    max_sequences: int  # decoded at a time
    startup_s: float  # from launch to the first served token, the slowest worker
    prompt_tokens_per_s: float  # best seen
    answer_tokens_per_s: float
    points: tuple[Measurement, ...]
    kv_bytes_per_token: float = 0.0  # 0, as the next: nothing was transferred
    transfer_s_per_byte: float = 0.0
    errors: Mapping[Metric, InterpolationError] = {}  # at the points held out

    @property
    def title(self) -> str:
        """Of what it is."""
        shape = (self.tensor_parallel, self.pipeline_parallel, self.data_parallel)
        sizes = " ".join(f"{name}{n}" for name, n in zip(("TP", "PP", "DP"), shape, strict=True))
        version = f" {self.version}" if self.version != self.engine else ""
        return f"{self.model}, {self.engine}{version}, {self.kind}, {sizes}"

    def of(self, what: Metric, *, held_out: bool = False) -> list[Measurement]:
        """The points there of which a time is known."""
        wanted = (what, held_out)
        return [p for p in self.points if (p.spot.metric, p.spot.held_out) == wanted and p.seconds]


def load_profile(file: Path) -> EngineProfile:
    """Raises ConfigError for a file that is not there, or not a profile that can be used."""
    try:
        profile = msgspec.json.decode(file.read_bytes(), type=EngineProfile)
    except OSError as e:
        raise ConfigError(f"{file}: cannot be read: {e.strerror}", hint=HINT) from e
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{file}: is not a profile: {e}", hint=HINT) from e
    for what in (Metric.ttft, Metric.itl):
        if not profile.of(what):
            raise ConfigError(f"{file}: has no point of {what}", hint=HINT)
    return profile


def read_measurements(files: Iterable[Path]) -> defaultdict[OperatingPoint, list[Measurement]]:
    """What all attempts so far have measured; a line that a crash tore is not read."""
    found = defaultdict[OperatingPoint, list[Measurement]](list)
    for file in files:
        for point in jsonl.read(file, Measurement):
            found[point.spot].append(point)
    return found
