"""Prometheus metrics under vLLM's names, so that one parser reads both engines.

Names, labels and bucket bounds follow vLLM 0.32 (`vllm/v1/metrics`, and `stats.py` of its NIXL
connector). The format is the Prometheus text exposition 0.0.4.
"""

from collections.abc import Iterator, Sequence

from hpc_dynamo.histogram import Histogram

TTFT_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    *(20, 40, 80, 160, 640, 2560),
)
ITL_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
TRANSFER_BYTES = tuple(2 ** (10 + i) for i in range(1, 25, 2))


class SimulatorMetrics:
    """All metrics of one engine, or of one data-parallel rank.

    The scheduler and the hand-off update the fields.
    """

    def __init__(self, num_blocks: int, block_size: int, rank: int = 0) -> None:
        self._rank = rank
        self.others: Sequence[SimulatorMetrics] = ()  # other data-parallel ranks
        self._cache_labels = (
            f'engine="{rank}",num_gpu_blocks="{num_blocks}",block_size="{block_size}"'
        )
        self.running = self.waiting = 0
        self.kv_usage = 0.0
        self.prompt_tokens = self.generation_tokens = 0
        self.prefix_queries = self.prefix_hits = self.external_hits = 0
        self.finished = dict.fromkeys(("stop", "length", "abort", "error"), 0)
        self.ttft = Histogram(TTFT_S)
        self.itl = Histogram(ITL_S)
        self.transfer_bytes = Histogram(TRANSFER_BYTES)
        self.failed_transfers = self.expired = 0

    def text(self, model: str) -> str:
        """Return the page of /metrics."""
        quoted = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        own = "\n".join(self._lines(f'engine="{self._rank}",model_name="{quoted}"')) + "\n"
        return own + "".join(each.text(model) for each in self.others)

    def _lines(self, labels: str) -> Iterator[str]:
        yield "# TYPE vllm:cache_config_info gauge"
        yield f"vllm:cache_config_info{{{self._cache_labels}}} 1"
        for kind, values in (("gauge", self._gauges()), ("counter", self._counters())):
            for name, value in values.items():
                yield f"# TYPE vllm:{name} {kind}"
                yield f"vllm:{name}{{{labels}}} {value}"
        yield "# TYPE vllm:request_success_total counter"
        for reason, count in self.finished.items():
            yield f'vllm:request_success_total{{finished_reason="{reason}",{labels}}} {count}'
        for name, histogram in self._histograms().items():
            yield f"# TYPE vllm:{name} histogram"
            for bound, total in histogram.cumulative():
                yield f'vllm:{name}_bucket{{{labels},le="{bound}"}} {total}'
            yield f"vllm:{name}_count{{{labels}}} {histogram.count}"
            yield f"vllm:{name}_sum{{{labels}}} {histogram.sum}"

    def _gauges(self) -> dict[str, float]:
        return {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting,
            "kv_cache_usage_perc": self.kv_usage,
        }

    def _counters(self) -> dict[str, float]:
        return {
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.generation_tokens,
            "prefix_cache_queries_total": self.prefix_queries,
            "prefix_cache_hits_total": self.prefix_hits,
            "external_prefix_cache_hits_total": self.external_hits,
            "nixl_num_failed_transfers_total": self.failed_transfers,
            "nixl_num_kv_expired_reqs_total": self.expired,
        }

    def _histograms(self) -> dict[str, Histogram]:
        return {
            "time_to_first_token_seconds": self.ttft,
            "inter_token_latency_seconds": self.itl,
            "nixl_bytes_transferred": self.transfer_bytes,
        }
