"""The models of a job: each has its own tokenizer, its own workers and its own figures."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hpc_dynamo.dispatch import Dispatcher
from hpc_dynamo.engines import Body
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.request_translator import RequestTranslator, requested_model
from hpc_dynamo.frontend.stats import FrontendStats
from hpc_dynamo.frontend.status_endpoints import check_model, unknown_model
from hpc_dynamo.router import RunView


@dataclass(frozen=True)
class ModelEndpoint:
    """What a request of one model passes through."""

    model: str  # see topology.Worker
    translator: RequestTranslator
    dispatcher: Dispatcher
    stats: FrontendStats

    @property
    def notice(self) -> str:
        """Return why texts are not routed by KV cache, and what to try.

        Empty if they are, or if the policy of the router does not need the tokenizer.
        """
        return self.translator.notice


class ModelEndpoints:
    """Chooses by the name that a request gives."""

    def __init__(self, lanes: Iterable[ModelEndpoint]) -> None:
        self._lanes = {lane.model: lane for lane in lanes}
        self._only = self._lanes.get("")

    def __iter__(self) -> Iterator[ModelEndpoint]:
        return iter(self._lanes.values())

    def for_body(self, body: Body, view: RunView) -> ModelEndpoint:
        """Raises Refused where nobody serves what is asked for."""
        return self.for_name(requested_model(body), view)

    def for_name(self, name: str | None, view: RunView) -> ModelEndpoint:
        """Return the lane of a model, by any name that requests may use. Raises Refused."""
        if name is not None:
            name = view.aliases.get(name, name)
        if self._only:
            check_model(view.model("").names, name, view.aliases)
            return self._only
        if name is None:
            what = f"the body names no model; known: {', '.join(self._lanes)}"
            raise ApiError(400, what, code="model_not_found", param="model")
        return self._lanes.get(name) or self._answering(name, view)

    def _answering(self, name: str, view: RunView) -> ModelEndpoint:
        """Engines may have further names for what they serve."""
        for model, lane in self._lanes.items():
            if name in view.model(model).names:
                return lane
        raise unknown_model(name, dict.fromkeys((*self._lanes, *view.names, *view.aliases)))
