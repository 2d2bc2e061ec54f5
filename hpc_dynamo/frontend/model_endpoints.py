"""Models of a run: each has its own tokenizer, dispatcher and counters."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hpc_dynamo.dispatch import Dispatcher, StreamMigrator
from hpc_dynamo.engines import Body
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.request_translator import RequestTranslator, requested_model
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.frontend.status_endpoints import check_model, unknown_model
from hpc_dynamo.router import RunView


@dataclass(frozen=True)
class ModelEndpoint:
    """Translator, dispatcher, migrator and counters of one model in a frontend process."""

    model: str  # key in config.models, empty for a run of one model
    translator: RequestTranslator
    dispatcher: Dispatcher
    migrator: StreamMigrator
    stats: FrontendStats


class ModelEndpoints:
    """Selects a model by the name in a request."""

    def __init__(self, endpoints: Iterable[ModelEndpoint]) -> None:
        self._endpoints = {endpoint.model: endpoint for endpoint in endpoints}
        self._only = self._endpoints.get("")

    def __iter__(self) -> Iterator[ModelEndpoint]:
        return iter(self._endpoints.values())

    def for_body(self, body: Body, view: RunView) -> ModelEndpoint:
        """Return the model that a body names. Raises ApiError."""
        return self.for_name(requested_model(body), view)

    def for_name(self, name: str | None, view: RunView) -> ModelEndpoint:
        """Return a model by any name that requests may use. Raises ApiError."""
        if name is not None:
            name = view.aliases.get(name, name)
        if self._only:
            check_model(view.model("").names, name, view.aliases)
            return self._only
        if name is None:
            what = f"the body names no model; known: {', '.join(self._endpoints)}"
            raise ApiError(400, what, code="model_not_found", param="model")
        return self._endpoints.get(name) or self._by_engine_name(name, view)

    def _by_engine_name(self, name: str, view: RunView) -> ModelEndpoint:
        """Return a model by an additional name that its engines serve."""
        for model, endpoint in self._endpoints.items():
            if name in view.model(model).names:
                return endpoint
        raise unknown_model(name, dict.fromkeys((*self._endpoints, *view.names, *view.aliases)))
