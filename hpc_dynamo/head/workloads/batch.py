"""Workload of a batch, from reading its input to its last result on disk."""

import asyncio
from pathlib import Path

import msgspec

from hpc_dynamo.batch import report
from hpc_dynamo.batch.exit_status import exit_status
from hpc_dynamo.batch.input_file import BatchInput, read_input
from hpc_dynamo.batch.ledger import Ledger
from hpc_dynamo.batch.runner import BatchRunner
from hpc_dynamo.config import Config, Policy, Role
from hpc_dynamo.dispatch import Dispatcher
from hpc_dynamo.engines import engine, pd_protocol_of
from hpc_dynamo.errors import InputError
from hpc_dynamo.head.workloads import batch_prompts
from hpc_dynamo.head.workloads.workload import HeadContext
from hpc_dynamo.launch.node import restart_count
from hpc_dynamo.messages import Outcome, Progress, Status, max_context_tokens
from hpc_dynamo.router import AdmissionLimits, StartShare
from hpc_dynamo.run import Run


def start_limits(config: Config, requests: int) -> AdmissionLimits:
    """Return the limits for the start of a batch with `requests` in flight, see StartShare.

    With the KV policy, prompts that share a prefix go to one worker, which may get two shares.
    """
    most = 2 * requests if config.router.policy is Policy.kv else requests
    pools = config.topology.pools
    return AdmissionLimits(
        start_shares={role: StartShare(p.workers, -(-most // p.workers)) for role, p in pools}
    )


def require_unchanged(requests: BatchInput, run: Run) -> None:
    """Raise InputError if the input is not the one that the job was submitted with: a run never
    contains results of two inputs."""
    known = run.identity()
    if known and known.fingerprint != requests.fingerprint:
        what = (
            f"{requests.file} was changed after the job was submitted: its SHA-256 is "
            f"{requests.fingerprint[:16]}…, but {run.identity_file} has {known.fingerprint[:16]}…"
        )
        hint = "restore the file and run the same command again, or name=OTHER for the new input"
        raise InputError(what, hint=hint)


class BatchWorkload:
    """A batch of requests, see Workload."""

    def __init__(self, context: HeadContext) -> None:
        self._attempt, self._config = context.attempt, context.config
        self._members = context.members
        self._router, self._client = context.route.router, context.client
        self._runner: BatchRunner | None = None
        self._notices: tuple[str, ...] = ()
        self.phase = "loading"

    async def run(self) -> Outcome:
        """Run all requests without a result, then write output.jsonl and errors.jsonl."""
        config, names = self._config, engine(self._config.engine.name)
        requests = await asyncio.to_thread(read_input, Path(config.input))
        require_unchanged(requests, self._attempt.run)
        ledger = Ledger(self._attempt.run, self._attempt.number, restart_count())
        # Earlier results may be gigabytes; a thread reads them, so that heartbeats continue.
        remaining = await asyncio.to_thread(ledger.unfinished, requests)
        prompts = await batch_prompts.load_batch_tokenizer(config)
        await self._router.wait_for_roles(role for role, _ in config.topology.pools)
        before = await report.read_metrics(self._client, self._router.workers, names.metrics)
        async with asyncio.TaskGroup() as tasks:
            # A request that kills its worker must not be retried on another one.
            dispatcher = Dispatcher(
                self._router, pd_protocol_of(config.engine), self._client, tasks, max_attempts=1
            )
            prompts = await batch_prompts.verify_tokenizer(prompts, config, dispatcher)
            self._notices = batch_prompts.routing_notices(prompts, config)
            runner = self._runner = BatchRunner(
                config, requests, remaining, ledger, dispatcher, self._alive, prompts,
                self._prefill_ready, self._max_context_tokens,
            )  # fmt: skip
            self._router.set_limits(start_limits(config, runner.in_flight))
            if self.phase == "draining":
                runner.stop()
            else:
                self.phase = "running"
            complete = await runner.run()
        after = await report.read_metrics(self._client, self._router.workers, names.metrics)
        if not complete:
            return self._unfinished(runner.progress())
        ids = [entry.custom_id for entry in requests.entries]
        answered, failed = await asyncio.to_thread(ledger.merge, ids)
        figures = report.summarize(self._router.workers, before, after, runner.progress())
        run, retried = self._attempt.run, config.batch.retry_failed
        code, why = await asyncio.to_thread(exit_status, run, answered, failed, retried=retried)
        return Outcome(exit_code=code, message=why, summary=figures)

    def _alive(self, rank: int) -> object | None:
        """Return an object that identifies this execution of a worker; None if it is dead."""
        return next((m for m in self._router.workers if m.rank == rank), None)

    def _max_context_tokens(self) -> int:
        return max_context_tokens(self._members.workers.values())

    def _prefill_ready(self) -> int:
        return sum(m.role is not Role.decode for m in self._router.workers)

    def _unfinished(self, progress: Progress) -> Outcome:
        """Return the outcome at the end of the walltime; requeue if it has answered a request."""
        message = "the walltime ended; run the same command again to resume"
        new = progress.done - progress.resumed
        if not new:
            message = f"no request was answered in a whole walltime (cluster.slurm.time); {message}"
        return Outcome(exit_code=1, message=message, requeue=self._config.batch.requeue and new > 0)

    @property
    def request_p95_s(self) -> float:
        return self._runner.durations.p95_s if self._runner else 0.0

    @property
    def overdue_outcome(self) -> Outcome:
        return self._unfinished(self._runner.progress() if self._runner else Progress())

    def drain(self) -> None:
        self.phase = "draining"
        if self._runner:
            self._runner.stop()

    @property
    def stopped_outcome(self) -> Outcome:
        message = f"stopped while {self.phase}; run the same command again to resume"
        return Outcome(exit_code=1, message=message)

    def extend_status(self, status: Status) -> Status:
        progress = self._runner.progress() if self._runner else Progress()
        return msgspec.structs.replace(status, progress=progress, notices=self._notices)
