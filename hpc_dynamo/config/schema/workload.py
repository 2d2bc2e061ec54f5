"""Fields of `batch`, `serve` and `route`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hpc_dynamo.config.schema.setting import setting
from hpc_dynamo.config.schema.topology import Role


class Task(StrEnum):
    """Purpose of a job."""

    batch = "batch"
    serve = "serve"
    profile = "profile"


@dataclass(frozen=True)
class Batch:
    """Offline run over a file of prompts."""

    concurrency: int | None = setting(
        None,
        "Requests in flight. Null: as many as the decode workers can run.",
        unit="requests",
        ge=1,
    )
    max_retries: int = setting(
        3, "Number of times that a failed request is retried.", ge=0, was="retries"
    )
    request_timeout_s: float = setting(3600.0, "Maximum time of one request.", unit="s", gt=0)
    requeue: bool = setting(
        True, "Requeue the job at the end of its walltime until the batch is complete."
    )
    retry_failed: bool = setting(
        False, "Run the requests in errors.jsonl again. Other results are kept."
    )
    body_defaults: dict[str, Any] = setting(
        {}, "Fields of the request body, used for requests that do not set them.", was="defaults"
    )


@dataclass(frozen=True)
class Serve:
    """OpenAI-compatible endpoint."""

    host: str | None = setting(
        None, "Address to listen on. Null: the head node's address on the job's network."
    )
    port: int = setting(0, "Port. 0: any free port, written to the run folder.", ge=0, le=65535)
    frontend_processes: int | None = setting(
        None,
        "Number of frontend processes. Null: depends on the cores of the node.",
        unit="processes",
        ge=1,
        was="frontends",
    )
    max_queued_requests: int = setting(
        1024,
        "Requests that may wait for a worker. Beyond that the server answers 429.",
        unit="requests",
        ge=1,
        was="queue",
    )
    queue_timeout_s: float = setting(
        60.0, "Maximum time that a request waits for a worker.", unit="s", gt=0
    )
    max_requests_per_worker: int | None = setting(
        None,
        "Requests assigned to one worker, running or queued in its engine. "
        "Null: twice `engine.max_num_seqs`.",
        unit="requests",
        ge=1,
        was="worker_requests",
    )
    request_timeout_s: float = setting(3600.0, "Maximum time of one request.", unit="s", gt=0)
    migrations: int = setting(
        3,
        "Number of times that a stream continues on another worker after its worker failed. "
        "0: the stream ends with an error.",
        ge=0,
    )
    max_body_mb: float = setting(32.0, "Maximum size of a request body.", unit="MB", gt=0)
    max_items_per_request: int = setting(
        10_000,
        "Maximum number of objects and arrays in a request, and of prompts; 4 times as many keys.",
        ge=1,
    )
    max_buffered_mb: float = setting(
        512.0,
        "Maximum size of all request bodies that one frontend process holds.",
        unit="MB",
        gt=0,
        was="buffer_mb",
    )
    api_key_file: str = setting(
        "",
        "File with the API key of the endpoint. Empty: a random key for the run.",
        path=True,
        was="key_file",
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        "Origins of web pages that may call the endpoint (CORS): `https://host[:port]`, or `*` "
        "for all.",
    )
    tls_cert: str = setting("", "PEM file with the TLS certificate.", path=True)
    tls_key: str = setting("", "PEM file with the TLS key.", path=True)


@dataclass(frozen=True)
class Route:
    """Engines that already run, by their base URLs, for `hpc-dynamo route`."""

    workers: tuple[str, ...] = setting((), "URLs of aggregated engines.")
    prefill: tuple[str, ...] = setting((), "URLs of prefill engines.")
    decode: tuple[str, ...] = setting((), "URLs of decode engines.")
    api_key_file: str = setting(
        "",
        "File with the API key that the engines require. Empty: they require none.",
        path=True,
        was="key_file",
    )
    events: tuple[str, ...] = setting(
        (),
        "ZMQ endpoints of each engine's KV events, live|replay, prefill engines first. Empty: no "
        "events.",
    )
    data_parallel: int = setting(
        1,
        "Data-parallel ranks of each engine. Requests are steered to them. The endpoints of their "
        "events follow those of rank 0, as the engines derive them: TCP port + rank.",
        unit="ranks",
        ge=1,
    )
    peers: tuple[str, ...] = setting((), "URLs of other heads in front of the same engines.")

    @property
    def engines(self) -> tuple[tuple[Role, str], ...]:
        """Role and URL of each engine, in the order of ranks, prefill first."""
        urls = (
            (Role.aggregated, self.workers),
            (Role.prefill, self.prefill),
            (Role.decode, self.decode),
        )
        return tuple((role, url) for role, given in urls for url in given)
