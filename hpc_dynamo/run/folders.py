"""Folders of a run, of its attempts and of their extra jobs: all paths and records."""

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
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
    NodesReplaced,
    Outcome,
    Roster,
    Status,
)
from hpc_dynamo.regular_file import read_key
from hpc_dynamo.run.files import read_json, write_atomic, write_json
from hpc_dynamo.run.privacy import create_private_folder
from hpc_dynamo.run.result_parts import part_of, parts_in
from hpc_dynamo.run.secrets import Secrets, new_token
from hpc_dynamo.topology import Plan

T = TypeVar("T")

EXTRA_JOBS = "extra_jobs"  # folder of an attempt's extra jobs
NUMBER = re.compile(r"[0-9]+")  # folders of attempts and extra jobs


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Record of the input that the results of a run belong to."""

    input: str
    fingerprint: str  # hash of the input's bytes
    created_at: float


def _read_required(path: Path, type_: type[T]) -> T:
    value = read_json(path, type_)
    if value is None:
        raise HpcDynamoError(
            f"{path} is missing",
            hint="runs_dir=FOLDER on a shared disk that all nodes see",
        )
    return value


class Attempt:
    """Folder of one attempt: one launch of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name)
        self.config_file = path / "config.json"
        self.plan_file = path / "plan.json"
        self.job_file = path / "job.json"
        self.roster_file = path / "roster.json"
        self.rendezvous_file = path / "rendezvous.json"
        self.replacements_file = path / "replacements.json"
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
        """Return the log of a worker, or of another of its shards."""
        return self.logs / (f"worker-{rank}-shard-{shard}.log" if shard else f"worker-{rank}.log")

    def frontend_log(self, index: int) -> Path:
        return self.logs / f"frontend-{index}.log"

    def node_file(self, node: int) -> Path:
        return self.path / "nodes" / f"{node}.json"

    def mpi_roster_file(self, node: int) -> Path:
        """Return the file in which the MPI rank of a node writes the roster for its agent."""
        return self.path / "nodes" / f"mpi-{node}.json"

    def config(self) -> Config:
        return _read_required(self.config_file, Config)

    def plan(self) -> Plan:
        return _read_required(self.plan_file, Plan)

    def engine_key(self) -> str:
        """Return the engines' token: that of the run, or with `route` that of `route.key_file`."""
        route = self.config().route
        if not route.engines:
            return self.run.secrets().token
        return read_key(route.api_key_file) if route.api_key_file else ""

    def reset_for_requeue(self) -> None:
        """Remove the records of an attempt whose job was requeued, so that no reader uses them."""
        for file in (self.outcome_file, self.endpoint_file, self.status_file):
            file.unlink(missing_ok=True)

    def job(self) -> JobRecord | None:
        return read_json(self.job_file, JobRecord, shown=True)

    def roster(self) -> Roster | None:
        return read_json(self.roster_file, Roster, shown=True)

    def replacements(self) -> NodesReplaced | None:
        return read_json(self.replacements_file, NodesReplaced)

    def status(self) -> Status | None:
        return read_json(self.status_file, Status, shown=True)

    def outcome(self) -> Outcome | None:
        return read_json(self.outcome_file, Outcome, shown=True)

    def endpoint(self) -> Endpoint | None:
        return read_json(self.endpoint_file, Endpoint, shown=True)

    def nodes(self) -> Iterator[NodeRecord]:
        """Yield the records of the agents that have started."""
        for file in sorted((self.path / "nodes").glob("[0-9]*.json")):
            record = read_json(file, NodeRecord, shown=True)
            if record:
                yield record

    def extra_jobs(self) -> list["ExtraJobFolder"]:
        """Return the extra jobs, oldest first."""
        folders = (p for p in (self.path / EXTRA_JOBS).glob("*") if NUMBER.fullmatch(p.name))
        return sorted((ExtraJobFolder(p) for p in folders), key=lambda g: g.number)

    def new_extra_job(self, plan: Plan) -> "ExtraJobFolder":
        """Create the folder of an extra job. Only the head calls this, or the CLI before it
        starts."""
        number = max((g.number for g in self.extra_jobs()), default=0) + 1
        grown = ExtraJobFolder(self.path / EXTRA_JOBS / str(number))
        for folder in (grown.submitit, grown.path / "nodes"):
            folder.mkdir(parents=True)
        write_json(grown.plan_file, plan)
        return grown


class ExtraJobFolder(Attempt):
    """Folder of an extra job of an attempt. Its ranks and nodes continue those of the attempt, so
    its logs are in the attempt's folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.attempt = attempt = Attempt(path.parent.parent)
        self.config_file, self.roster_file = attempt.config_file, attempt.roster_file
        self.logs, self.state_file = attempt.logs, path / "state.json"

    @property
    def run(self) -> "Run":
        return self.attempt.run

    def state(self) -> ExtraJobStatus | None:
        return read_json(self.state_file, ExtraJobStatus, shown=True)


class Run:
    """Folder of a named run: results of one input over any number of attempts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempts_folder = path / "attempts"
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
        """Create the folder, private to its owner. Existing secrets are kept.

        Raises FileRefused if another user could have written to it.
        """
        create_private_folder(self.path)
        self.attempts_folder.mkdir(exist_ok=True)
        self.results.mkdir(exist_ok=True)
        if not self.secrets_file.exists():
            write_json(self.secrets_file, secret, mode=0o600)
        if not self.key_file.exists():
            write_atomic(self.key_file, f"{new_token()}\n".encode(), mode=0o600)

    @property
    def is_created(self) -> bool:
        """Return True if `create` has begun: a folder without these is not a run."""
        return self.attempts_folder.is_dir() or self.identity_file.exists()

    def delete(self) -> None:
        """Delete what a run creates; the folder too, unless something else is in it."""
        for folder in (self.attempts_folder, self.results):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (
            *(self.identity_file, self.settings_file, self.retry_file, self.secrets_file),
            *(self.key_file, self.url_file, self.output, self.errors, self.profile, self.picture),
        ):
            file.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()

    def secrets(self) -> Secrets:
        return _read_required(self.secrets_file, Secrets)

    def api_key(self) -> str:
        return read_key(self.key_file)

    def publish_url(self, url: str) -> None:
        """Write the URL that clients use from now on."""
        write_atomic(self.url_file, f"{url}\n".encode())

    def identity(self) -> RunIdentity | None:
        return read_json(self.identity_file, RunIdentity)

    def write_identity(self, source: Path, fingerprint: str) -> None:
        record = RunIdentity(input=str(source), fingerprint=fingerprint, created_at=time.time())
        write_json(self.identity_file, record)

    def attempts(self) -> list[Attempt]:
        """Return all attempts, oldest first."""
        folders = (p for p in self.attempts_folder.glob("*") if NUMBER.fullmatch(p.name))
        return sorted((Attempt(p) for p in folders), key=lambda a: a.number)

    def attempt(self, number: int) -> Attempt:
        return Attempt(self.attempts_folder / str(number))

    def next_attempt(self) -> Attempt:
        """Return the next attempt, not yet created; another process may claim its number first."""
        return self.attempt(max((a.number for a in self.attempts()), default=0) + 1)

    def new_attempt(self, config: Config, plan: Plan) -> Attempt:
        """Create the next attempt. Creating its folder succeeds in only one process."""
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

    def attempt_results(self, number: int, restarts: int = 0) -> Path:
        """Return the part that an execution of an attempt appends to."""
        return part_of(self.results, number, restarts)

    def parts(self) -> list[Path]:
        """Return all files with results, the oldest first."""
        return parts_in(self.results)
