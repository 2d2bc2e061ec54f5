"""State of the run that the head pushes to its frontends."""

from collections import Counter

import msgspec

from hpc_dynamo.messages import Successor, WorkerLoad, WorkerReport


class ModelAvailability(msgspec.Struct, frozen=True, kw_only=True):
    """Current state of one served model."""

    ready: bool = False  # every role has a ready worker
    failure: str = ""  # reason of a permanent failure
    names: tuple[str, ...] = ()  # model names that its workers accept
    adapters: dict[str, str] = {}  # LoRA adapter -> base model; both are in `names`
    context_tokens: int = 0  # sequence length that all workers accept; 0: unknown
    max_context_tokens: int = 0  # longest sequence that any worker accepts; 0: unknown
    aliases: dict[str, str] = {}  # other accepted name -> name in `names`
    operations: tuple[str, ...] = ()  # HTTP operations of its workers; empty: unknown


NOT_AVAILABLE = ModelAvailability()


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """State of the run, pushed on every change and every second."""

    models: dict[str, ModelAvailability] = {}  # by model id, see topology.Worker
    draining: bool = False
    successor: Successor | None = None
    workers: tuple[WorkerReport, ...] = ()
    loads: tuple[WorkerLoad, ...] = ()
    started_at: float = 0.0  # seconds since the epoch
    metrics: str = ""  # all metrics of the job, in Prometheus text format

    def model(self, model: str) -> ModelAvailability:
        return self.models.get(model, NOT_AVAILABLE)

    @property
    def ready(self) -> bool:
        """Return True if all models without a permanent failure are ready, and there is one."""
        models = self.models.values()
        return any(m.ready for m in models) and all(m.ready or m.failure for m in models)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the model names that requests may use."""
        return tuple(name for model in self.models.values() for name in model.names)

    @property
    def aliases(self) -> dict[str, str]:
        """Return other accepted names, if they refer to exactly one model."""
        pairs = [pair for model in self.models.values() for pair in model.aliases.items()]
        counts = Counter(alias for alias, _ in pairs)
        return {alias: name for alias, name in pairs if counts[alias] == 1}

    @property
    def operations(self) -> tuple[str, ...]:
        """Return the engines' HTTP operations for clients, such as `POST /v1/rerank`."""
        known = (m for model in self.models.values() for m in model.operations)
        return tuple(dict.fromkeys(known))
