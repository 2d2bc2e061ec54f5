"""The models of a job: each has its own tokenizer, its own workers and its own figures."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hpc_dynamo.dispatch import Dispatcher
from hpc_dynamo.engines import Body
from hpc_dynamo.frontend.errors import Refused
from hpc_dynamo.frontend.generation import Generation, asked_model
from hpc_dynamo.frontend.stats import Stats
from hpc_dynamo.frontend.status_endpoints import check_model, unknown_model
from hpc_dynamo.router import View


@dataclass(frozen=True)
class Lane:
    """What a request of one model passes through."""

    model: str  # see topology.Worker
    generation: Generation
    dispatcher: Dispatcher
    stats: Stats

    @property
    def notice(self) -> str:
        """Return why texts are not routed by KV cache, and what to try.

        Empty if they are, or if the policy of the router does not need the tokenizer.
        """
        return self.generation.notice


class Lanes:
    """Chooses by the name that a request gives."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._lanes = {lane.model: lane for lane in lanes}
        self._only = self._lanes.get("")

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def of(self, body: Body, view: View) -> Lane:
        """Raises Refused where nobody serves what is asked for."""
        return self.named(asked_model(body), view)

    def named(self, name: str | None, view: View) -> Lane:
        """Return the lane of a model, by any name that requests may use. Raises Refused."""
        if name is not None:
            name = view.aliases.get(name, name)
        if self._only:
            check_model(view.of("").names, name, view.aliases)
            return self._only
        if name is None:
            what = f"the body names no model; known: {', '.join(self._lanes)}"
            raise Refused(400, what, code="model_not_found", param="model")
        return self._lanes.get(name) or self._answering(name, view)

    def _answering(self, name: str, view: View) -> Lane:
        """Engines may have further names for what they serve."""
        for model, lane in self._lanes.items():
            if name in view.of(model).names:
                return lane
        raise unknown_model(name, dict.fromkeys((*self._lanes, *view.names, *view.aliases)))
