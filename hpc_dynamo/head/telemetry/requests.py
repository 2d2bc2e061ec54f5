"""Metrics of requests, counted by the frontend processes and the router."""

from collections.abc import Iterable

from prometheus_client.core import Metric

from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.head.telemetry import families
from hpc_dynamo.messages import Traffic


def request_metrics(stats: FrontendStats) -> Iterable[Metric]:
    """Yield what frontend processes count for each model."""
    answers = sorted(stats.responses.items())
    yield families.REQUESTS.values((key.split(" "), count) for key, count in answers)
    yield families.REQUEST_RETRIES.value(stats.retried)
    yield families.STREAM_MIGRATIONS.values(
        ((outcome,), count) for outcome, count in sorted(stats.migrations.items())
    )
    yield families.PROMPT_TOKENS.value(stats.prompt_tokens)
    yield families.TTFT.histogram(stats.ttft)
    yield families.ITL.histogram(stats.itl)
    yield families.E2E_LATENCY.histogram(stats.seconds)


def traffic_metrics(traffic: Traffic) -> Iterable[Metric]:
    """Yield the router's counts of one model's requests."""
    yield families.REQUESTS_REJECTED.value(traffic.refused)
    yield families.REQUESTS_RUNNING.value(traffic.active)
    yield families.REQUESTS_WAITING.value(traffic.queued)


def connection_metrics(stats: FrontendStats) -> Iterable[Metric]:
    """Yield what frontend processes count without a model."""
    yield families.REQUESTS_CANCELLED.value(stats.cancelled)
    yield families.REQUESTS_FORWARDED.value(stats.forwarded)
    rejections = sorted(stats.rejections.items())
    yield families.HTTP_REJECTIONS.values(((reason,), count) for reason, count in rejections)
    yield families.OPEN_CONNECTIONS.value(stats.connections)
