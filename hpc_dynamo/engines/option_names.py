"""Names of the options of vLLM 0.32 and SGLang 0.5.23.

Taken from the parsers of the engines (`tests/unit/engines/contract/*.json`). VALUES and FLAGS
leave out options that hold a key, and those for LoRA adapters, which `model.lora` sets.
"""

# Options with a value.
_VALUES = """
additional-config all2all-backend allowed-headers allowed-local-media-path allowed-media-domains
allowed-methods allowed-origins anthropic-disabled-thinking-effort api-server-count
asr-max-buffer-seconds asr-max-concurrent-sessions attention-backend attention-config
attention-context-parallel-size attention-data-parallel-size attn-cp-size attn-dp-size
aux-output-config base-gpu-id batch-notify-size bf16-gemm-backend block-size boundary-reduction
bucket-e2e-request-latency bucket-inter-token-latency bucket-time-to-first-token c128-page-size
chat-template chat-template-content-format chunked-prefill-size code-revision cohere-format
collect-detailed-traces compilation-config completion-template config-format
constrained-json-max-whitespace-cnt constrained-json-whitespace-pattern context-bucket
context-length convert cp-kv-cache-interleave-size cp-strategy cpu-distributed-timeout-seconds
cpu-offload-gb cpu-offload-params crash-dump-folder cuda-graph-backend-decode
cuda-graph-backend-prefill cuda-graph-bs-decode cuda-graph-bs-prefill cuda-graph-config
cuda-graph-max-bs-decode cuda-graph-max-bs-prefill cuda-graph-max-seq-len-prefill
cuda-graph-prefill-max-context cudagraph-capture-sizes custom-histogram-buckets
custom-weight-loader data-parallel-address data-parallel-backend data-parallel-rank
data-parallel-rpc-port data-parallel-size data-parallel-size-local data-parallel-start-rank
data-parallel-supervisor-port dbo-decode-token-threshold dbo-prefill-token-threshold
dcp-comm-backend dcp-kv-cache-interleave-size dcp-replicate-q-proj dcp-size
debug-tensor-dump-input-file debug-tensor-dump-layers debug-tensor-dump-output-folder
decode-attention-backend decode-context-parallel-size decode-log-interval
decoupled-spec-bind-endpoint decoupled-spec-connect-endpoints decoupled-spec-rank
decoupled-spec-role decrypted-config-file decrypted-draft-config-file deepep-config
deepep-dispatcher-output-dtype deepep-mode deepep-v2-mode default-chat-template-kwargs
default-mm-loras default-priority-value detokenizer-worker-num device device-ids
device-memory-utilization diffusion-config disable-access-log-for-endpoints disable-cuda-graph
disaggregation-bootstrap-port disaggregation-decode-allocation-policy
disaggregation-decode-extra-slots disaggregation-decode-host-receive-threshold
disaggregation-decode-polling-interval disaggregation-decode-retraction-backup
disaggregation-ib-device disaggregation-mode disaggregation-transfer-backend dist-init-addr
dist-timeout distributed-executor-backend distributed-timeout-seconds dllm-algorithm
dllm-algorithm-config dllm-fdfo download-dir dp-size dp-supervisor-probe-failure-threshold
dp-supervisor-probe-interval-s dp-supervisor-probe-timeout-s dp-sync-interval dsa-decode-backend
dsa-paged-mqa-logits-backend dsa-prefill-backend dsa-topk-backend dsa-triton-union
dsv4-attn-backend dsv4-prefill-backend dtype dwdp-size dynamic-batch-tokenizer-batch-size
dynamic-batch-tokenizer-batch-timeout ec-manager-config ec-transfer-config elastic-ep-backend
elastic-ep-initial-size elastic-ep-join-mode elastic-ep-join-rank-offset elastic-ep-max-dp-size
elastic-ep-scale-timeout enable-decoder-swa-bounded-replay enable-dp-attention
enable-dsa-fused-indexer enable-fused-qk-norm-rope enable-lean-attention
enable-lora-overlap-loading enable-multimodal enable-quant-communications enable-tf32-matmul
enable-tp-lm-head-all-to-all encoder-bootstrap-port encoder-register-urls encoder-transfer-backend
encoder-urls engine-info-bootstrap-port engram-config ep ep-dispatch-algorithm
ep-num-redundant-experts ep-size eplb-algorithm eplb-config
eplb-min-rebalancing-utilization-threshold eplb-rebalance-layers-per-chunk
eplb-rebalance-num-iterations expert-balancedness-report-mode
expert-distribution-recorder-buffer-size expert-distribution-recorder-mode expert-parallel-size
expert-placement-strategy experts-shared-outer-loras export-metrics-to-file-dir
extra-metric-labels fastapi-root-path fault-tolerance-config file-storage-path fingerprint-mode
fingerprint-value flashinfer-a2a-dispatch-type flashinfer-allreduce-fusion-backend
flashinfer-autotune-skip-ops flashinfer-mxfp4-moe-precision flexkv-config-file forward-hooks
forward-pass-metrics-ipc-name forward-pass-metrics-worker-id fp4-gemm-backend fp8-gemm-backend
fuseep-mode gated-launch-port gc-threshold gc-warning-threshold-secs gdn-prefill-backend
generation-config generation-tokens-buckets gpu-id-step gpu-memory-utilization grammar-backend
grpc-http-sidecar-port grpc-port grpc-response-timeout-secs h11-max-header-count
h11-max-incomplete-event-size hf-chat-template-name hf-config-path hf-overrides
hicache-host-memory-fraction hicache-host-memory-mode hicache-io-backend hicache-mem-layout
hicache-ratio hicache-size hicache-storage-backend hicache-storage-backend-extra-config
hicache-storage-prefetch-policy hicache-storage-prefetch-retry-max-attempts
hicache-storage-prefetch-retry-poll-interval hicache-write-policy
hierarchical-sparse-attention-extra-config hisparse-config host
http2-initial-connection-window-size http2-max-concurrent-streams ignore-patterns
image-processor-backend init-expert-location int8-mamba-ckpt-size io-processor-plugin
ir-op-priority jit-monitor-mode json-model-override-args kda-decode-backend kda-prefill-backend
kernel-config kt-cpuinfer kt-max-deferred-experts-per-token kt-method kt-num-gpu-experts
kt-threadpool-count kt-weight-path kv-cache-dtype kv-cache-dtype-skip-layers kv-cache-memory-bytes
kv-cache-metrics-sample kv-canary kv-canary-real-data kv-canary-sweep-interval kv-events-config
kv-offloading-backend kv-offloading-size kv-transfer-config limit-mm-data-per-request
limit-mm-per-prompt linear-attn-backend linear-attn-decode-backend linear-attn-prefill-backend
linear-attn-verify-backend linear-backend linear-replayssm-cache-len lmcache-config-file
load-balance-method load-format load-publish-endpoint load-snapshot-publish-interval
log-config-file log-level log-level-http log-requests-format log-requests-level
log-requests-target logging-config logits-processors logprobs-mode long-prefill-token-threshold
lora-backend lora-drain-wait-threshold lora-dtype lora-eviction-policy lora-strict-loading
lora-target-modules mamba-backend mamba-block-size mamba-cache-dtype mamba-cache-mode
mamba-cache-philox-rounds mamba-full-memory-ratio mamba-max-states-per-path
mamba-radix-cache-strategy mamba-ssm-cache-dtype mamba-ssm-dtype mamba-ssu-algorithm
mamba-track-interval master-addr master-port max-cpu-loras max-cudagraph-capture-size max-ep-size
max-loaded-loras max-log-len max-logprobs max-lora-chunk-size max-lora-cls-labels max-lora-rank
max-loras max-loras-per-batch max-mamba-cache-size max-model-len max-num-active-seqs
max-num-batched-tokens max-num-queued-reqs max-num-queued-tokens max-num-scheduled-tokens
max-num-seqs max-parallel-loading-workers max-prefill-tokens max-queued-requests
max-running-requests max-total-tokens media-io-kwargs media-url-max-file-size-mb
mem-fraction-static middleware min-free-slots-delay mm-attention-backend mm-enable-dp-encoder
mm-encoder-attn-backend mm-encoder-attn-dtype mm-encoder-fp8-scale-path
mm-encoder-fp8-scale-save-margin mm-encoder-fp8-scale-save-path mm-encoder-tp-mode
mm-feature-transport mm-global-cache-backend mm-hasher-algorithm mm-io-worker-num
mm-ipc-gpu-memory-gb mm-preprocess-cache-size-mb mm-process-config mm-processor-cache-gb
mm-processor-cache-type mm-processor-device mm-processor-kwargs mm-processor-worker-num
mm-shm-cache-max-object-size-mb mm-tensor-ipc model model-checksum model-class-overrides
model-config-parser model-impl model-loader-extra-config model-path modelexpress-config
modelopt-checkpoint-restore-path modelopt-checkpoint-save-path modelopt-export-path modelopt-quant
moe-a2a-backend moe-backend moe-data-parallel-size moe-dense-tp-size moe-dp-size
moe-runner-backend monokernel-backend mooncake-ib-device msprobe-dump-config nccl-init-addr
nccl-port nnodes node-rank num-continuous-decode-steps num-gpu-blocks-override
num-reserved-decode-tokens numa-bind-cpus numa-bind-nodes numa-node offload-backend
offload-group-size offload-mode offload-num-in-group offload-params offload-prefetch-step
optimistic-prefill-attempts optimization-level otlp-service-name otlp-traces-endpoint
override-generation-config page-size paged-experts-num-resident pdmux-config-path
per-request-spec-decode-metrics performance-mode pipeline-parallel-size ple-offload-backend
ple-offload-dir ple-offload-embedding pooler-config port pp-async-batch-depth
pp-max-micro-batch-size pp-size preferred-sampling-params prefill-attention-backend
prefill-context-parallel-size prefill-decode-interval prefill-decode-interval-min-bs
prefill-delayer-forward-passes-buckets prefill-delayer-max-delay-ms
prefill-delayer-max-delay-passes prefill-delayer-queue-min-ratio
prefill-delayer-token-usage-low-watermark prefill-delayer-wait-seconds-buckets
prefill-kv-cache-dequant-dtype prefill-max-requests prefill-schedule-interval
prefix-cache-retention-interval prefix-caching-hash-algo prefix-match-unit
priority-scheduling-preemption-threshold profiler-config prompt-tokens-buckets
pt-load-map-location qsa-indexer-dtype quantization quantization-config quantization-param-path
radix-cache-backend radix-eviction-policy radix-eviction-policy-config random-seed
reasoning-config reasoning-parser reasoning-parser-plugin remote-instance-weight-loader-backend
remote-instance-weight-loader-seed-instance-ip
remote-instance-weight-loader-seed-instance-service-port
remote-instance-weight-loader-send-weights-group-ports renderer-num-workers replayssm-buffer-len
response-role retraction-policy return-aux-hidden-state-layer-ids return-hidden-states-mode
revision rl-on-policy-target rl-quant-profile root-path runner safetensors-load-strategy
safetensors-prefetch-block-size safetensors-prefetch-num-threads sampling-backend
sampling-defaults sampling-mask-max-tokens schedule-conservativeness schedule-policy scheduler-cls
scheduler-recv-interval scheduling-policy seed served-model-name shared-experts-tp-size
show-hidden-metrics-for-version shutdown-timeout sidecar sidecar-args
sleep-preserve-parameter-names sm-group-num smg-http-sidecar-port soft-watchdog-timeout
sparse-indexer-topk-backend spec-method spec-model spec-tokens spec-trace-dir
speculative-accept-threshold-acc speculative-accept-threshold-single speculative-adaptive-config
speculative-algorithm speculative-attention-mode speculative-config speculative-dflash-block-size
speculative-domino-candidate-pool-size speculative-draft-attention-backend
speculative-draft-kv-cache-dtype speculative-draft-load-format speculative-draft-model
speculative-draft-model-path speculative-draft-model-quantization speculative-draft-model-revision
speculative-draft-sink-size speculative-draft-window-size speculative-dsa-topk-backend
speculative-dspark-block-size speculative-dspark-confidence-sts-path
speculative-dspark-sps-table-path speculative-eagle-topk speculative-enable-w4a4-mxfp4-megamoe
speculative-moe-a2a-backend speculative-moe-runner-backend speculative-ngram-capacity
speculative-ngram-external-corpus-max-tokens speculative-ngram-external-corpus-path
speculative-ngram-external-sam-budget speculative-ngram-match-type
speculative-ngram-max-bfs-breadth speculative-ngram-max-trie-depth
speculative-ngram-min-bfs-breadth speculative-num-draft-tokens speculative-num-steps
speculative-token-map sse-keep-alive-interval ssl-ca-certs ssl-cert-reqs ssl-certfile ssl-ciphers
ssl-keyfile startup-weight-load-mode stream-interval structured-outputs-config
swa-full-tokens-ratio swa-prefix-tails tbo-token-distribution-threshold tensor-parallel-size
tokenizer tokenizer-backend tokenizer-metrics-allowed-custom-labels
tokenizer-metrics-custom-labels-header tokenizer-mode tokenizer-path tokenizer-revision
tokenizer-worker-num tool-call-parser tool-parser-plugin tool-server tool-strict-level
torch-compile-max-bs tp-size trace-modules triton-attention-num-kv-splits
triton-attention-split-tile-size ubatch-size uds unified-cache-external-linker-backend
unified-cache-external-linker-config uno-lora-path uvicorn-access-log-exclude-prefixes
uvicorn-log-level video-pruning-method video-pruning-rate warmups watchdog-timeout watermark
watermark-config weight-cache-mode weight-cache-socket weight-cache-timeout
weight-loader-prefetch-num-threads weight-transfer-config weight-version worker-cls
worker-extension-cls
"""

# Options without a value.
_FLAGS = """
abort-on-priority-when-disabled aggregate-engine-logging allow-auto-truncate allow-credentials
allow-deprecated-quantization async-scheduling checkpoint-engine-wait-weights-before-ready
cohere-is-reasoning-model constrained-json-disable-any-whitespace cudagraph-metrics
data-parallel-external-lb data-parallel-hybrid-lb data-parallel-multi-port-external-lb
dcp-q-replicate debug-cuda-graph delete-ckpt-after-loading
disable-aiter-allreduce-fusion-in-decode disable-aiter-allreduce-fusion-in-prefill
disable-attn-tp-gather disable-cascade-attn disable-chunked-mm-input disable-chunked-prefix-cache
disable-cuda-graph-padding disable-custom-all-reduce disable-decode-cuda-graph
disable-fast-image-processor disable-fastapi-docs disable-flashinfer-autotune
disable-flashinfer-cutlass-moe-fp4-allgather disable-hybrid-kv-cache-manager
disable-hybrid-swa-memory disable-log-stats disable-nccl-for-dp-synchronization
disable-outlines-disk-cache disable-overlap-schedule disable-prefill-cuda-graph
disable-priority-preemption disable-radix-cache disable-shared-experts-fusion
disable-sliding-window disable-tokenizer-batch-decode disable-uvicorn-access-log
disaggregation-decode-enable-offload-kvcache disaggregation-decode-enable-radix-cache
disaggregation-enable-kv-checksum enable-adaptive-dispatch-to-encoder
enable-aiter-allreduce-fusion enable-amd-monokernel enable-attn-tp-input-scattered
enable-auto-tool-choice enable-batch-sharded-sampling enable-broadcast-mm-inputs-process
enable-cache-report enable-chunked-prefill enable-cp-decode-attn-tp enable-cudagraph-gc
enable-cumem-allocator enable-custom-logit-processor enable-dbo enable-deepseek-v4-fp4-indexer
enable-dense-mlp-attn-tp enable-deterministic-inference
enable-dp-attention-local-control-broadcast enable-dp-lm-head enable-draft-weights-cpu-backup
enable-dsa-cache-layer-split enable-dynamic-batch-tokenizer enable-dynamic-chunking
enable-elastic-ep enable-elastic-expert-backup enable-encoder-swa-bounded-replay
enable-ep-weight-filter enable-eplb enable-expert-parallel enable-fault-tolerance
enable-flash-late-interaction enable-flashinfer-allreduce-fusion enable-flashinfer-autotune
enable-flexkv enable-force-include-usage enable-forward-pass-metrics enable-fp32-lm-head
enable-fused-moe-sum-all-reduce enable-hc-sp enable-hicache enable-hierarchical-cache
enable-hisparse enable-http-worker-reuseport enable-http2 enable-int8-mamba-checkpoint
enable-kv-cache-sharding enable-layernorm-sp enable-layerwise-nvtx-marker
enable-layerwise-nvtx-tracing enable-linear-replayssm enable-linear-replayssm-spec
enable-linker-mla-dedup enable-lmcache enable-log-deltas enable-log-outputs enable-log-requests
enable-logging-iteration-details enable-lora enable-mamba-cache-stochastic-rounding
enable-mamba-shared-prefix-checkpoint enable-megamoe-for-layernorm-sp enable-memory-saver
enable-metrics enable-metrics-for-all-schedulers enable-mfu-metrics enable-mis enable-mixed-chunk
enable-mixed-moe-lora-format enable-mm-embeds enable-mm-global-cache enable-moe-shared-loras
enable-mscclpp enable-multi-layer-eagle enable-nccl-comm-suspend enable-nccl-nvls
enable-nvidia-megakernel enable-offline-docs enable-p2p-check enable-page-major-kv-layout
enable-paged-experts enable-pd-role-switch enable-pdmux enable-per-request-metrics
enable-precise-embedding-interpolation enable-prefill-cp enable-prefill-delayer
enable-prefix-caching enable-prefix-mm-cache enable-priority-scheduling enable-profile-cuda-graph
enable-prompt-embeds enable-prompt-tokens-details enable-request-id-headers
enable-request-time-stats-logging enable-response-store enable-return-aux-hidden-states
enable-return-hidden-states enable-return-indexer-topk enable-return-routed-experts
enable-scale-out enable-scattered-sconv enable-server-load-tracking enable-session-radix-cache
enable-shared-experts-attn-tp enable-shm-tensor-arena enable-single-batch-overlap
enable-sleep-mode enable-ssl-refresh enable-streaming-session enable-strict-thinking
enable-symm-mem enable-tokenizer-batch-encode enable-tokenizer-info-endpoint enable-torch-compile
enable-torch-compile-debug-mode enable-torch-symm-mem enable-tower-connector-lora enable-trace
enable-trace-replay enable-two-batch-overlap enable-unified-cache-external-linker
enable-unified-memory enable-w4a4-mxfp4-megamoe enable-waterfill enable-watermark
enable-weights-cpu-backup encoder-only enforce-disable-flashinfer-allreduce-fusion enforce-eager
enforce-shared-experts-fusion exclude-tools-when-tool-choice-none export-metrics-to-file
fail-on-environ-validation flashinfer-mla-disable-ragged fully-sharded-loras grpc grpc-mode
headless incremental-streaming-output interleave-mm-strings is-embedding jit-monitor-verbose
kv-cache-metrics kv-sharing-fast-prefill language-model-only language-only log-error-stack
log-requests long-prefill-token-threshold-adaptive lora-use-virtual-experts mlx-enable-sampling
mm-device-do-normalize mm-encoder-only numa-bind pre-warm-nccl prefill-only-disable-kv-cache
quantize-and-serve ray-workers-use-nsight
remote-instance-weight-loader-start-seed-via-transfer-engine return-input-ids return-output-ids
return-sampling-mask return-tokens-as-token-ids schedule-low-priority-values-first
scheduler-reserve-full-isl show-time-cost skip-mm-profiling skip-server-warmup skip-tokenizer-init
sleep-mode-offload-cudagraph sleep-on-idle smg-grpc-mode specialize-active-lora
speculative-adaptive speculative-dspark-align-verify-tokens-to-graph-tier
speculative-use-block-verification speculative-use-rejection-sampling
stream-response-default-include-usage strip-thinking-cache swa-bounded-replay tokens-only
triton-attention-reduce-in-fp32 trust-mm-content-hashes trust-remote-code
trust-request-chat-template trust-request-mm-kwargs use-fp64-gumbel use-ray use-replayssm
use-tqdm-on-load weight-loader-disable-mmap weight-loader-drop-cache-after-load
weight-loader-prefetch-checkpoints
"""

# Options that take several values as separate arguments (argparse's `nargs` is + or *).
_SEVERAL = """
allowed-media-domains api-key bucket-e2e-request-latency bucket-inter-token-latency
bucket-time-to-first-token collect-detailed-traces cpu-offload-params cuda-graph-bs-decode
cuda-graph-bs-prefill cudagraph-capture-sizes custom-weight-loader debug-tensor-dump-layers
encoder-register-urls encoder-urls flashinfer-autotune-skip-ops gc-threshold
generation-tokens-buckets ignore-patterns kv-cache-dtype-skip-layers log-requests-target
logits-processors lora-modules lora-paths lora-target-modules numa-bind-cpus numa-bind-nodes
numa-node offload-params prefill-delayer-forward-passes-buckets
prefill-delayer-wait-seconds-buckets prompt-tokens-buckets return-aux-hidden-state-layer-ids
served-model-name sleep-preserve-parameter-names tokenizer-metrics-allowed-custom-labels
uvicorn-access-log-exclude-prefixes
"""

VALUES, FLAGS, MULTI_VALUE = (frozenset(names.split()) for names in (_VALUES, _FLAGS, _SEVERAL))
