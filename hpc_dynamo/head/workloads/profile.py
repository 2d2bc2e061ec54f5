"""A profile, from the first ready workers to its file in the run folder."""

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

import msgspec

from hpc_dynamo import jsonl
from hpc_dynamo.config import Device, Role, with_role_options
from hpc_dynamo.engines import engine, pd_protocol_of
from hpc_dynamo.errors import EngineError, MissingDependency, RequestFailed
from hpc_dynamo.head.workloads.workload import HeadContext
from hpc_dynamo.messages import Outcome, Progress, Status, WorkerReport
from hpc_dynamo.planner.interpolation import ProfilePerformance
from hpc_dynamo.planner.profile import (
    EngineProfile,
    Measurement,
    Metric,
    OperatingPoint,
    read_measurements,
)
from hpc_dynamo.planner.profile_plot import plot_profile
from hpc_dynamo.profiler.bench import ProfileBench
from hpc_dynamo.profiler.grid import ProfileLimits, operating_points
from hpc_dynamo.run import write_json

ROUNDS = 3  # over all spots: what disturbs one round may be gone in the next
UNTOLD_CONTEXT = 2048  # tokens, of engines that do not say how long a sequence may be

log = logging.getLogger(__name__)


class ProfileWorkload:
    """See head.work.Work."""

    def __init__(self, job: HeadContext) -> None:
        self._job, self._config, self._run = job, job.config, job.attempt.run
        self._engine = engine(job.config.engine.name)
        self._part = self._run.attempt_results(job.attempt.number)
        self._began, self._draining = time.monotonic(), False
        self._total = self._resumed = self._done = self._running = 0
        self.phase, self.likely_s = "loading", 0.0

    async def run(self) -> Outcome:
        await self._job.route.router.wait_for_roles(role for role, _ in self._config.topology.pools)
        prefill, decode = self._workers()
        name = self._config.served_name
        spoken = pd_protocol_of(self._config)
        bench = ProfileBench(self._job.client, self._engine, name, prefill.url, decode.url, spoken)
        try:
            version, limits = await bench.version(), await self._limits(bench, prefill, decode)
            points = await self._points(bench, operating_points(limits))
        except* (RequestFailed, OSError) as e:
            raise self._broken(e) from e
        if points is None:
            return self.overdue_outcome
        profile = self._profile(version, limits, decode, points)
        return await asyncio.to_thread(self._write, profile)

    async def _points(
        self, bench: ProfileBench, spots: list[OperatingPoint]
    ) -> tuple[Measurement, ...] | None:
        """Of all spots, less what earlier attempts measured; None where the job ends first."""
        known = read_measurements(self._parts())
        self._resumed = sum(min(len(known[spot]), ROUNDS) for spot in spots)
        self._total, self._began = ROUNDS * len(spots), time.monotonic()
        if not self._draining:
            self.phase = "measuring"
        for before, spot in product(range(ROUNDS), spots):
            if self._draining:
                return None
            if len(known[spot]) <= before:
                known[spot].append(await self._measure(bench, spot))
        return tuple(min(known[spot], key=lambda p: p.seconds or math.inf) for spot in spots)

    def _workers(self) -> tuple[WorkerReport, WorkerReport]:
        """The first that prefills and the first that decodes."""
        by_role = {w.role: w for w in reversed(self._job.members.in_order()) if w.url}
        both = by_role.get(Role.aggregated)
        return both or by_role[Role.prefill], both or by_role[Role.decode]

    async def _limits(
        self, bench: ProfileBench, prefill: WorkerReport, decode: WorkerReport
    ) -> ProfileLimits:
        return ProfileLimits(
            context_tokens=min(prefill.context_tokens, decode.context_tokens) or UNTOLD_CONTEXT,
            max_sequences=self._config.engine.max_num_seqs,
            block_tokens=self._engine.block_tokens(with_role_options(self._config, decode.role)),
            kv_tokens=await bench.kv_tokens(),
            transfers=prefill is not decode,
        )

    async def _measure(self, bench: ProfileBench, spot: OperatingPoint) -> Measurement:
        self._running, began = 1, time.monotonic()
        point = await bench.measure(spot)
        await asyncio.to_thread(jsonl.append, self._part, point)
        self._running, self._done = 0, self._done + 1
        self.likely_s = max(self.likely_s, time.monotonic() - began)
        return point

    def _parts(self) -> Iterable[Path]:
        return sorted(self._run.results.glob("*.jsonl"), key=lambda p: int(p.stem))

    def _broken(self, group: BaseExceptionGroup[Exception]) -> EngineError:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        what = f"a worker broke while it was measured: {first or type(first).__name__}"
        hint = "the logs named worker-RANK.log in it; the same command goes on from here"
        return EngineError(what, hint=hint, log=self._job.attempt.logs)

    def _profile(
        self,
        version: str,
        limits: ProfileLimits,
        decode: WorkerReport,
        points: tuple[Measurement, ...],
    ) -> EngineProfile:
        config = self._config
        pool = dict(config.topology.pools)[decode.role]
        profile = EngineProfile(
            model=config.served_name,
            engine=config.engine.name,
            version=version,
            hardware=hardware(config.engine.device),
            kind=str(config.topology.kind),
            tensor_parallel=pool.tensor_parallel,
            pipeline_parallel=pool.pipeline_parallel,
            data_parallel=pool.data_parallel,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            context_tokens=limits.context_tokens,
            kv_tokens=limits.kv_tokens,
            max_sequences=limits.max_sequences,
            startup_s=max(w.start_s for w in self._job.members.in_order()),
            prompt_tokens_per_s=_best(points, Metric.ttft, lambda s: s.prompt_tokens),
            answer_tokens_per_s=_best(points, Metric.itl, lambda s: s.sequences),
            points=points,
        )
        return with_derived_figures(profile)

    def _write(self, profile: EngineProfile) -> Outcome:
        """The picture first: once there is a profile the run is complete."""
        drawn = str(self._run.picture)
        try:
            plot_profile(self._run.picture, profile)
        except MissingDependency as e:
            drawn = f"no picture: {e.message}, {e.hint}"
        write_json(self._run.profile, profile)
        return Outcome(exit_code=0, message=f"{self._run.profile}\n{drawn}")

    def drain(self) -> None:
        self.phase, self._draining = "draining", True

    @property
    def stopped_outcome(self) -> Outcome:
        why = f"stopped while {self.phase}; the same command goes on from here"
        return Outcome(exit_code=1, message=why)

    @property
    def overdue_outcome(self) -> Outcome:
        return Outcome(exit_code=1, message="the walltime ended; the same command goes on")

    def extend_status(self, status: Status) -> Status:
        progress = Progress(
            unit="points",
            total=self._total,
            done=self._done + self._resumed,
            resumed=self._resumed,
            running=self._running,
            elapsed_s=time.monotonic() - self._began,
        )
        return msgspec.structs.replace(status, progress=progress)


def with_derived_figures(profile: EngineProfile) -> EngineProfile:
    """With what follows from its points: the errors, and what a byte takes to move."""
    worker = ProfilePerformance(profile)
    errors = {what: error for what in Metric if (error := worker.error(what))}
    profile = msgspec.structs.replace(profile, errors=errors)
    moved = [p for p in profile.of(Metric.transfer) if p.size_bytes]
    if not moved:
        return profile
    longest = max(moved, key=lambda p: p.size_bytes)
    tokens = longest.spot.prompt_tokens
    return msgspec.structs.replace(
        profile,
        kv_bytes_per_token=longest.size_bytes / tokens,
        transfer_s_per_byte=worker.transfer_s(tokens) / longest.size_bytes,
    )


def _best(
    points: Iterable[Measurement], what: Metric, tokens: Callable[[OperatingPoint], int]
) -> float:
    """Tokens a second; cached ones do not count."""
    rates = (
        tokens(p.spot) / p.seconds
        for p in points
        if p.spot.metric is what and p.seconds and not p.spot.cached_tokens
    )
    return max(rates, default=0.0)


def hardware(device: Device) -> str:
    """What this node computes on, by the kernel's word."""
    if device is Device.cuda:
        found = [
            _value(file.read_text(), "Model")
            for file in Path("/proc/driver/nvidia/gpus").glob("*/information")
        ]
        return found[0] if found else "an unknown GPU"
    return f"{os.cpu_count()} x {_value(Path('/proc/cpuinfo').read_text(), 'model name')}"


def _value(text: str, name: str) -> str:
    lines = (line.partition(":") for line in text.splitlines())
    return next((v.strip() for k, _, v in lines if k.strip() == name), "unknown")
