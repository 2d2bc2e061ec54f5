"""What the head tells its frontends of the job."""

from collections import Counter

import msgspec

from hpc_dynamo.messages import Successor, WorkerLoad, WorkerReport


class ModelAvailability(msgspec.Struct, frozen=True, kw_only=True):
    """One model, as the workers that serve it are now."""

    ready: bool = False  # every role has a worker that serves
    failure: str = ""  # why none of them will ever do so again
    names: tuple[str, ...] = ()  # that its workers answer to
    adapters: dict[str, str] = {}  # which of the names are LoRA adapters, and of what
    context_tokens: int = 0  # of the longest sequence that all of them take; 0: not known
    aliases: dict[str, str] = {}  # more names for requests, each with its name in `names`
    operations: tuple[str, ...] = ()  # of any of its workers' HTTP API; empty: not known


NOT_AVAILABLE = ModelAvailability()


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """What the head tells its frontends of the job, on every change and every second."""

    models: dict[str, ModelAvailability] = {}  # by model, see topology.Worker
    draining: bool = False
    successor: Successor | None = None
    workers: tuple[WorkerReport, ...] = ()
    loads: tuple[WorkerLoad, ...] = ()
    started_at: float = 0.0  # seconds since the epoch
    metrics: str = ""  # of the whole job, in Prometheus' text format

    def model(self, model: str) -> ModelAvailability:
        return self.models.get(model, NOT_AVAILABLE)

    @property
    def ready(self) -> bool:
        """Whether every model is served that still can be."""
        offers = self.models.values()
        return any(o.ready for o in offers) and all(o.ready or o.failure for o in offers)

    @property
    def names(self) -> tuple[str, ...]:
        """That requests may use."""
        return tuple(name for offer in self.models.values() for name in offer.names)

    @property
    def aliases(self) -> dict[str, str]:
        """Return more names for requests, if each refers to exactly one model."""
        pairs = [pair for offer in self.models.values() for pair in offer.aliases.items()]
        counts = Counter(alias for alias, _ in pairs)
        return {alias: name for alias, name in pairs if counts[alias] == 1}

    @property
    def operations(self) -> tuple[str, ...]:
        """Return the engines' HTTP operations for clients, such as `POST /v1/rerank`."""
        known = (o for offer in self.models.values() for o in offer.operations)
        return tuple(dict.fromkeys(known))
