"""Workload of a profile, from the first ready workers to its file in the run folder."""

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
from hpc_dynamo.launch.node import restart_count
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

ROUNDS = 3  # over all points, since a disturbance may affect one round only
DEFAULT_CONTEXT = 2048  # tokens, for engines that do not report their longest sequence

log = logging.getLogger(__name__)


class ProfileWorkload:
    """Measurements of one worker of each role, see Workload."""

    def __init__(self, context: HeadContext) -> None:
        self._context, self._config = context, context.config
        self._run = context.attempt.run
        self._engine = engine(context.config.engine.name)
        self._results = self._run.attempt_results(context.attempt.number, restart_count())
        self._began, self._draining = time.monotonic(), False
        self._total = self._resumed = self._done = self._running = 0
        self.phase, self.request_p95_s = "loading", 0.0

    async def run(self) -> Outcome:
        """Measure all points of the grid, then write the profile and its plot."""
        roles = [role for role, _ in self._config.topology.pools]
        await self._context.route.router.wait_for_roles(roles)
        prefill, decode = self._workers()
        client, protocol = self._context.client, pd_protocol_of(self._config.engine)
        name, urls = self._config.served_name, (prefill.url, decode.url)
        bench = ProfileBench(client, self._engine, name, *urls, protocol)
        try:
            version, limits = await bench.version(), await self._limits(bench, prefill, decode)
            points = await self._points(bench, operating_points(limits))
        except* (RequestFailed, OSError) as e:
            raise self._error(e) from e
        if points is None:
            return self.overdue_outcome
        profile = self._profile(version, limits, decode, points)
        return await asyncio.to_thread(self._write, profile)

    async def _points(
        self, bench: ProfileBench, grid: list[OperatingPoint]
    ) -> tuple[Measurement, ...] | None:
        """Measure all points that earlier attempts have not; return None if the job ends first."""
        known = read_measurements(self._run.parts())
        self._resumed = sum(min(len(known[point]), ROUNDS) for point in grid)
        self._total, self._began = ROUNDS * len(grid), time.monotonic()
        if not self._draining:
            self.phase = "measuring"
        for round_number, point in product(range(ROUNDS), grid):
            if self._draining:
                return None
            if len(known[point]) <= round_number:
                known[point].append(await self._measure(bench, point))
        return tuple(min(known[point], key=lambda p: p.seconds or math.inf) for point in grid)

    def _workers(self) -> tuple[WorkerReport, WorkerReport]:
        """Return the first worker that prefills and the first that decodes."""
        by_role = {w.role: w for w in reversed(self._context.members.in_order()) if w.url}
        both = by_role.get(Role.aggregated)
        return both or by_role[Role.prefill], both or by_role[Role.decode]

    async def _limits(
        self, bench: ProfileBench, prefill: WorkerReport, decode: WorkerReport
    ) -> ProfileLimits:
        engine = with_role_options(self._config, decode.role).engine
        return ProfileLimits(
            context_tokens=min(prefill.context_tokens, decode.context_tokens) or DEFAULT_CONTEXT,
            max_sequences=self._config.engine.max_num_seqs,
            block_tokens=self._engine.block_tokens(engine),
            kv_tokens=await bench.kv_tokens(),
            transfers=prefill is not decode,
        )

    async def _measure(self, bench: ProfileBench, point: OperatingPoint) -> Measurement:
        self._running, began = 1, time.monotonic()
        result = await bench.measure(point)
        await asyncio.to_thread(jsonl.append, self._results, result)
        self._running, self._done = 0, self._done + 1
        self.request_p95_s = max(self.request_p95_s, time.monotonic() - began)
        return result

    def _error(self, group: BaseExceptionGroup[Exception]) -> EngineError:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        what = f"a worker failed during the measurement: {first or type(first).__name__}"
        hint = "read the worker-RANK.log files there; run the same command again to resume"
        return EngineError(what, hint=hint, log=self._context.attempt.logs)

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
            startup_s=max(w.start_s for w in self._context.members.in_order()),
            prompt_tokens_per_s=_best(points, Metric.ttft, lambda s: s.prompt_tokens),
            answer_tokens_per_s=_best(points, Metric.itl, lambda s: s.sequences),
            points=points,
        )
        return with_derived_figures(profile)

    def _write(self, profile: EngineProfile) -> Outcome:
        """Write plot and profile. The profile is last, since its file completes the run."""
        plot = str(self._run.picture)
        try:
            plot_profile(self._run.picture, profile)
        except MissingDependency as e:
            plot = f"no plot: {e.message}, {e.hint}"
        write_json(self._run.profile, profile)
        return Outcome(exit_code=0, message=f"{self._run.profile}\n{plot}")

    def drain(self) -> None:
        self.phase, self._draining = "draining", True

    @property
    def stopped_outcome(self) -> Outcome:
        message = f"stopped while {self.phase}; run the same command again to resume"
        return Outcome(exit_code=1, message=message)

    @property
    def overdue_outcome(self) -> Outcome:
        message = "the walltime ended; run the same command again to resume"
        return Outcome(exit_code=1, message=message)

    def extend_status(self, status: Status) -> Status:
        """Add the number of measured points."""
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
    """Add the figures that follow from the points: interpolation errors and transfer speed."""
    worker = ProfilePerformance(profile)
    errors = {what: error for what in Metric if (error := worker.error(what))}
    profile = msgspec.structs.replace(profile, errors=errors)
    moved = [p for p in profile.of(Metric.transfer) if p.size_bytes]
    if not moved:
        return profile
    longest = max(moved, key=lambda p: p.size_bytes)
    tokens = longest.point.prompt_tokens
    return msgspec.structs.replace(
        profile,
        kv_bytes_per_token=longest.size_bytes / tokens,
        transfer_s_per_byte=worker.transfer_s(tokens) / longest.size_bytes,
    )


def _best(
    points: Iterable[Measurement], what: Metric, tokens: Callable[[OperatingPoint], int]
) -> float:
    """Return the highest rate in tokens per second, without cached tokens."""
    rates = (
        tokens(p.point) / p.seconds
        for p in points
        if p.point.metric is what and p.seconds and not p.point.cached_tokens
    )
    return max(rates, default=0.0)


def hardware(device: Device) -> str:
    """Return the name of the GPU or CPU of this node, as the kernel reports it."""
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
