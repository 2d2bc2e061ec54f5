"""Engine options that change speed, memory or logs, but not the answers.

A run may be resumed with other values of these; every other option is assumed to change answers
(see `settings`). Names are those of the command line; a name covers the fields below it. The last
bits of a number may still differ, as between two GPUs or two batch sizes.

Source: vLLM 0.32 and 0.33 (engine/arg_utils.py), SGLang 0.5.23 (srt/server_args.py), TensorRT-LLM
(llmapi/llm_args.py, commands/serve.py), the simulator (simulator/options.py).
"""

from collections.abc import Mapping

VLLM = """
aggregate-engine-logging all2all-backend api-server-count async-scheduling attention-backend
attention-config block-size collect-detailed-traces compilation-config cpu-offload-gb
cpu-offload-params cudagraph-capture-sizes cudagraph-metrics data-parallel-address
data-parallel-backend data-parallel-rpc-port data-parallel-size data-parallel-size-local
dbo-decode-token-threshold dbo-prefill-token-threshold dcp-comm-backend
decode-context-parallel-size disable-access-log-for-endpoints disable-cascade-attn
disable-chunked-mm-input disable-custom-all-reduce disable-hybrid-kv-cache-manager
disable-log-requests disable-log-stats disable-nccl-for-dp-synchronization
disable-uvicorn-access-log distributed-executor-backend distributed-timeout-seconds download-dir
enable-chunked-prefill enable-dbo enable-eplb enable-expert-parallel enable-flashinfer-autotune
enable-log-outputs enable-log-requests enable-mfu-metrics enable-prefix-caching
enable-sleep-mode enforce-eager eplb-config expert-placement-strategy fully-sharded-loras
gpu-memory-utilization kv-cache-memory-bytes kv-cache-metrics kv-events-config
kv-offloading-backend kv-offloading-size kv-transfer-config linear-backend log-level
long-prefill-token-threshold max-cpu-loras max-cudagraph-capture-size
max-long-partial-prefills max-loras max-num-batched-tokens max-num-partial-prefills max-num-seqs
max-parallel-loading-workers mm-encoder-tp-mode mm-processor-cache-gb mm-processor-cache-type
moe-backend num-gpu-blocks-override numa-bind offload-backend optimization-level
otlp-traces-endpoint performance-mode pipeline-parallel-size prefill-context-parallel-size
prefix-caching-hash-algo profiler-config renderer-num-workers safetensors-load-strategy
scheduling-policy stream-interval swap-space tensor-parallel-size ubatch-size
use-tqdm-on-load uvicorn-log-level
"""

SGLANG = """
attention-backend attn-dp-size chunked-prefill-size context-parallel-size crash-dump-folder
cuda-graph-bs cuda-graph-bs-decode cuda-graph-max-bs cuda-graph-max-bs-decode
decode-attention-backend decode-log-interval deepep-config deepep-mode disable-cuda-graph
disable-custom-all-reduce disable-overlap-schedule disable-radix-cache
disaggregation-decode-retraction-backup disaggregation-ib-device dist-timeout download-dir dp-size
enable-cache-report enable-dp-attention enable-dp-lm-head enable-eplb
enable-hierarchical-cache enable-metrics enable-mixed-chunk enable-torch-compile
enable-two-batch-overlap ep-dispatch-algorithm ep-num-redundant-experts ep-size eplb-algorithm
hicache-ratio hicache-size kv-events-config load-balance-method log-level log-level-http
log-requests max-loaded-loras max-loras-per-batch max-prefill-tokens max-queued-requests
max-running-requests max-total-tokens mem-fraction-static moe-a2a-backend moe-dense-tp-size
moe-runner-backend num-continuous-decode-steps page-size pp-size prefill-attention-backend
prefill-max-requests schedule-conservativeness schedule-policy sleep-on-idle stream-interval
torch-compile-max-bs tp-size triton-attention-num-kv-splits watchdog-timeout
"""

TRTLLM = """
ep-size free-gpu-memory-fraction kv-cache-free-gpu-memory-fraction log-level max-batch-size
max-num-tokens num-postprocess-workers pp-size tp-size
extra.cache-transceiver-config extra.cuda-graph-config extra.disable-overlap-scheduler
extra.enable-attention-dp extra.enable-autotuner extra.enable-chunked-prefill
extra.enable-iter-perf-stats extra.enable-layerwise-nvtx-marker extra.enable-lm-head-tp-in-adp
extra.kv-cache-config.enable-block-reuse extra.kv-cache-config.event-buffer-max-size
extra.kv-cache-config.free-gpu-memory-fraction extra.kv-cache-config.host-cache-size
extra.kv-cache-config.max-tokens extra.max-batch-size extra.max-num-tokens
extra.moe-config.backend extra.num-postprocess-workers extra.print-iter-log
extra.scheduler-config extra.stream-interval extra.torch-compile-config
"""

SIMULATOR = """
block-size damage-kv die-after-tokens dialect enable-prompt-tokens-details
enable-request-id-headers enable-sleep-mode fail-after-requests fail-request-rate fail-start
kv-bytes-per-token kv-events-config kv-lease-s kv-load-failure-policy kv-transfer-timeout-s
log-level lose-kv-events max-cpu-loras max-loras max-num-batched-tokens max-num-seqs num-blocks
outlive-nodes stall-after-tokens start-delay-s time-scale timing
"""

TUNING: Mapping[str, frozenset[str]] = {
    "sglang": frozenset(SGLANG.split()),
    "simulator": frozenset(SIMULATOR.split()),
    "trtllm": frozenset(TRTLLM.split()),
    "vllm": frozenset(VLLM.split()),
}


def changes_answers(engine: str, option: str) -> bool:
    """Return True if another value of an engine option may change answers.

    `option` is a name of the command line; fields of a mapping follow after dots.
    """
    parts = option.split(".")
    known = TUNING.get(engine, frozenset())
    return not any(".".join(parts[:n]) in known for n in range(1, len(parts) + 1))
