"""State of a running engine that its endpoints use, and failures that they inject."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hpc_dynamo.kv.agent import KvAgent
from hpc_dynamo.simulator.bad_answers import BadAnswer
from hpc_dynamo.simulator.metrics import SimulatorMetrics
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sglang_api import SglangApi
from hpc_dynamo.simulator.sglang_bootstrap import SglangRank


@dataclass(frozen=True)
class InjectedFailures:
    """Failures of requests on arrival. See SchedulerLimits for failures during generation."""

    after_requests: int | None = None  # SIGKILL at the request after this many
    request_rate: float = 0.0  # share of requests with status 500
    seed: int = 0
    text: bytes = b""  # SIGKILL at a body that contains this text
    hang_after: int | None = None  # compute nothing more after this many requests
    bad_answer: BadAnswer | None = None  # instead of an output
    bad_after: int = 1  # requests that are answered well before


@dataclass(frozen=True)
class EngineContext:
    """The running engine that the endpoints use."""

    model: str
    max_model_len: int
    scheduler: Scheduler
    metrics: SimulatorMetrics
    failures: InjectedFailures
    agent: KvAgent | None = None  # prefill and decode ranks have one
    sglang: SglangRank | None = None  # set on prefill and decode ranks with SGLang's protocol
    sglang_api: SglangApi | None = None  # set with SGLang's protocol
    trtllm: bool = False  # hand-offs in TensorRT-LLM's form
    adapters: Mapping[str, str] = field(default_factory=dict)  # name to path
    prefixed_adapters: bool = False  # requests name MODEL:ADAPTER, as in SGLang
    report_cached: bool = False  # prefix hits in `usage.prompt_tokens_details`
    report_request_id: bool = False  # X-Request-Id in the response's headers
    pooling: bool = False  # only embeddings are supported
    sleep_mode: bool = False

    @property
    def adapter_names(self) -> dict[str | None, str]:
        """Return adapters by the model name of their requests."""
        prefix = f"{self.model}:" if self.prefixed_adapters else ""
        return {f"{prefix}{name}": name for name in self.adapters}
