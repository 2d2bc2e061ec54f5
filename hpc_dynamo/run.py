"""Paths of one run, and the way files there are written.

    runs/<name>/                 mode 0700
      run.json                   which input these results belong to
      settings.json              the settings that they were made with
      retry.json                 which failures batch.retry_failed=true has declared void
      secrets.json               mode 0600: the engines' token, keys of the control plane
      api_key                    mode 0600: what clients of a serving run present
      url                        the base URL of the attempt that serves now
      attempts/<n>/              one launch of the run, the n-th
        config.json plan.json job.json roster.json status.json outcome.json endpoint.json
        planner.jsonl            what the planner saw, decided and did
        nodes/<i>.json           agent i was here
        logs/agent-<i>.log logs/worker-<rank>.log logs/frontend-<i>.log
        logs/worker-<rank>-shard-<k>.log  the k-th further part of a worker over several nodes
        logs/worker-<rank>.yaml  options of an engine that reads them from a file
        submitit/                submitit's own scripts, pickles and logs
        scale_out.jsonl          extra jobs that were requested or given back, and why
        extra_jobs/<k>/          an extra job: plan.json job.json state.json outcome.json nodes/
                                 submitit/; its logs are in the attempt's logs/
      parts/<n>.jsonl            results of attempt n, appended
      output.jsonl errors.jsonl  all results in the input's order, once a run has ended
      profile.json profile.png   of a profile: what all attempts measured

The folder is on a shared and slow disk, so: no locks, small files are written under a
temporary name, flushed and renamed; an attempt is claimed by making its folder; every
attempt appends to files of its own.
"""

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from hpc_dynamo.config import Config
from hpc_dynamo.errors import HpcDynamoError
from hpc_dynamo.messages import (
    Endpoint,
    ExtraJobStatus,
    JobRecord,
    NodeRecord,
    Outcome,
    Roster,
    Status,
)
from hpc_dynamo.topology import Plan

T = TypeVar("T")

EXTRA_JOBS = "extra_jobs"  # folder of an attempt's further jobs


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """What the results of a run folder belong to."""

    input: str
    fingerprint: str  # of the input's bytes
    created_at: float


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Private to the run: the engines' bearer token and the control plane's CURVE key pair."""

    token: str
    public: str
    private: str

    @property
    def keys(self) -> tuple[str, str]:
        return self.public, self.private


def new_token() -> str:
    """A fresh bearer token, 256 bits."""
    return secrets.token_urlsafe(32)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Readers see the old bytes or the new, never a part, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as e:  # the error of a full disk has no file name
        temporary.unlink(missing_ok=True)
        raise OSError(e.errno, e.strerror, str(path)) from e


def write_json(path: Path, value: object, *, mode: int = 0o644) -> None:
    write_atomic(path, msgspec.json.format(msgspec.json.encode(value), indent=1), mode=mode)


def read_json(path: Path, type_: type[T]) -> T | None:
    """The record in `path`; None where there is no file yet. Raises HpcDynamoError if broken."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=type_)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as e:
        hint = "the file was changed by hand, or by another version of hpc-dynamo"
        raise HpcDynamoError(f"{path} cannot be read: {e}", hint=hint) from e


def _read_required(path: Path, type_: type[T]) -> T:
    value = read_json(path, type_)
    if value is None:
        raise HpcDynamoError(f"{path} is missing", hint="is the run folder on a shared disk?")
    return value


class Attempt:
    """One launch of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name)
        self.config_file = path / "config.json"
        self.plan_file = path / "plan.json"
        self.job_file = path / "job.json"
        self.roster_file = path / "roster.json"
        self.rendezvous_file = path / "rendezvous.json"
        self.status_file = path / "status.json"
        self.outcome_file = path / "outcome.json"
        self.endpoint_file = path / "endpoint.json"
        self.planner_file = path / "planner.jsonl"
        self.scale_out_file = path / "scale_out.jsonl"
        self.logs = path / "logs"
        self.submitit = path / "submitit"

    @property
    def run(self) -> "Run":
        return Run(self.path.parent.parent)

    def agent_log(self, node: int) -> Path:
        return self.logs / f"agent-{node}.log"

    def worker_log(self, rank: int, shard: int = 0) -> Path:
        """Of a worker, or of a further part of it, which is on another node."""
        return self.logs / (f"worker-{rank}-shard-{shard}.log" if shard else f"worker-{rank}.log")

    def frontend_log(self, index: int) -> Path:
        return self.logs / f"frontend-{index}.log"

    def node_file(self, node: int) -> Path:
        return self.path / "nodes" / f"{node}.json"

    def config(self) -> Config:
        return _read_required(self.config_file, Config)

    def plan(self) -> Plan:
        return _read_required(self.plan_file, Plan)

    def engine_key(self) -> str:
        """What engines ask for: the run's token, or theirs where somebody else started them."""
        route = self.config().route
        if not route.engines:
            return self.run.secrets().token
        return Path(route.api_key_file).read_text().strip() if route.api_key_file else ""

    def reset_for_requeue(self) -> None:
        """A requeued job begins anew in its attempt; nobody must take its former life's word."""
        for file in (self.outcome_file, self.endpoint_file, self.status_file):
            file.unlink(missing_ok=True)

    def job(self) -> JobRecord | None:
        return read_json(self.job_file, JobRecord)

    def roster(self) -> Roster | None:
        return read_json(self.roster_file, Roster)

    def status(self) -> Status | None:
        return read_json(self.status_file, Status)

    def outcome(self) -> Outcome | None:
        return read_json(self.outcome_file, Outcome)

    def endpoint(self) -> Endpoint | None:
        return read_json(self.endpoint_file, Endpoint)

    def nodes(self) -> Iterator[NodeRecord]:
        """The agents that came up so far."""
        for file in sorted((self.path / "nodes").glob("[0-9]*.json")):
            record = read_json(file, NodeRecord)
            if record:
                yield record

    def extra_jobs(self) -> list["ExtraJobFolder"]:
        """Its further jobs, oldest first."""
        folders = (p for p in (self.path / EXTRA_JOBS).glob("*") if p.name.isdigit())
        return sorted((ExtraJobFolder(p) for p in folders), key=lambda g: g.number)

    def new_extra_job(self, plan: Plan) -> "ExtraJobFolder":
        """A further job. Only the attempt's head makes them."""
        number = max((g.number for g in self.extra_jobs()), default=0) + 1
        grown = ExtraJobFolder(self.path / EXTRA_JOBS / str(number))
        for folder in (grown.submitit, grown.path / "nodes"):
            folder.mkdir(parents=True)
        write_json(grown.plan_file, plan)
        return grown


class ExtraJobFolder(Attempt):
    """A further job of an attempt. Its ranks and nodes go on from those before it, so that their
    logs find place among the attempt's."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.attempt = attempt = Attempt(path.parent.parent)
        self.config_file, self.roster_file = attempt.config_file, attempt.roster_file
        self.logs, self.state_file = attempt.logs, path / "state.json"

    @property
    def run(self) -> "Run":
        return self.attempt.run

    def state(self) -> ExtraJobStatus | None:
        return read_json(self.state_file, ExtraJobStatus)


class Run:
    """A named run: results of one input over any number of attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity_file = path / "run.json"
        self.settings_file = path / "settings.json"
        self.retry_file = path / "retry.json"
        self.secrets_file = path / "secrets.json"
        self.key_file = path / "api_key"
        self.url_file = path / "url"
        self.results = path / "parts"
        self.output = path / "output.jsonl"
        self.errors = path / "errors.jsonl"
        self.profile = path / "profile.json"
        self.picture = path / "profile.png"

    def create(self, secret: Secrets) -> None:
        """Make the folder, private to its owner; keeps secrets that are there already."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.path / "attempts").mkdir(exist_ok=True)
        self.results.mkdir(exist_ok=True)
        if not self.secrets_file.exists():
            write_json(self.secrets_file, secret, mode=0o600)
        if not self.key_file.exists():
            write_atomic(self.key_file, f"{new_token()}\n".encode(), mode=0o600)

    def secrets(self) -> Secrets:
        return _read_required(self.secrets_file, Secrets)

    def api_key(self) -> str:
        return self.key_file.read_text().strip()

    def publish_url(self, url: str) -> None:
        """Where clients are to look from now on."""
        write_atomic(self.url_file, f"{url}\n".encode())

    def identity(self) -> RunIdentity | None:
        return read_json(self.identity_file, RunIdentity)

    def write_identity(self, source: Path, fingerprint: str) -> None:
        record = RunIdentity(input=str(source), fingerprint=fingerprint, created_at=time.time())
        write_json(self.identity_file, record)

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first."""
        folders = (p for p in (self.path / "attempts").glob("*") if p.name.isdigit())
        return sorted((Attempt(p) for p in folders), key=lambda a: a.number)

    def attempt(self, number: int) -> Attempt:
        return Attempt(self.path / "attempts" / str(number))

    def next_attempt(self) -> Attempt:
        """Return the name of the next attempt, unless another process claims it first."""
        return self.attempt(max((a.number for a in self.attempts()), default=0) + 1)

    def new_attempt(self, config: Config, plan: Plan) -> Attempt:
        """Claim the next number: making the folder succeeds for one process only."""
        attempt = self.next_attempt()
        while True:
            try:
                attempt.path.mkdir()
                break
            except FileExistsError:
                attempt = self.attempt(attempt.number + 1)
        for folder in (attempt.logs, attempt.submitit, attempt.path / "nodes"):
            folder.mkdir()
        write_json(attempt.config_file, config)
        write_json(attempt.plan_file, plan)
        return attempt

    def attempt_results(self, number: int) -> Path:
        return self.results / f"{number}.jsonl"
