"""State of a running engine that its endpoints use."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hpc_dynamo.kv.agent import KvAgent
from hpc_dynamo.simulator.injected_failures import InjectedFailures
from hpc_dynamo.simulator.metrics import SimulatorMetrics
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.simulator.sglang_api import SglangApi
from hpc_dynamo.simulator.sglang_bootstrap import SglangRank


@dataclass(frozen=True)
class EngineContext:
    """The running engine that the endpoints use."""

    model: str
    max_model_len: int
    scheduler: Scheduler
    metrics: SimulatorMetrics
    failures: InjectedFailures
    # NIXL agents by name, one for each data-parallel rank; none if it is aggregated.
    agents: Mapping[str, KvAgent] = field(default_factory=dict)
    sglang: SglangRank | None = None  # set on prefill and decode ranks with SGLang's protocol
    sglang_api: SglangApi | None = None  # set with SGLang's protocol
    trtllm: bool = False  # hand-offs in TensorRT-LLM's form
    signing_key: str = ""  # key of TensorRT-LLM's hand-offs; empty: not checked
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
