"""An engine without a model: OpenAI's API, modelled time, real KV blocks and NIXL transfers.

It demonstrates and tests all other parts without an accelerator. It is started, monitored and
used like any other engine (`python -m hpc_dynamo.simulator --help`), and it implements the prefill
and decode protocols of vLLM, SGLang and TensorRT-LLM.

    __main__            the process: options, signals, exit code
    options             the command line
    server              HTTP endpoints
    generation          execution of one request
    generation_request  bodies of completions; chat_request: of chat; prompts: to token ids
    embeddings          /v1/embeddings
    response_formats    responses, complete and as streams; api_error: errors
    scheduler           continuous batching; step: one step and its limits
    sequence            a prompt and its output sequences
    model               effects of prefill and decode on the KV cache
    blocks              the paged KV cache: bookkeeping and bytes
    events              KV events
    token_generator     output words from KV bytes; tokenizer: text to token ids and back
    kv_handoff          vLLM's protocol between prefill and decode; kv_transfer_params
    sglang_bootstrap    SGLang's protocol
    trtllm_protocol     TensorRT-LLM's protocol
    nodes               a rank that spans several nodes
    adapters, metrics
"""
