"""Facts about a request that its body does not contain."""

from dataclasses import dataclass, field

from hpc_dynamo.router import RoutingHints


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Facts that the router needs about a request and that its body does not contain."""

    hints: RoutingHints = field(default_factory=RoutingHints)
    adapter: str | None = None  # requested LoRA adapter; its KV blocks differ from the base model's
    context_tokens: int = 0  # sequence length that all workers accept; 0: unknown
    max_context_tokens: int = 0  # longest sequence that any worker accepts; 0: unknown
    timeout_s: float = 0.0  # time limit in the queue; 0: the router's own
