"""An engine without a model: OpenAI's API, modelled time, real KV blocks, real NIXL transfers.

It shows what the rest of the product does when no accelerator is at hand, and it is started,
watched and asked like any other engine: `python -m hpc_dynamo.simulator --help`. It speaks the
prefill/decode dialect of vLLM's NixlConnector.

    __main__    options, signals, the life of the process
    server      the HTTP endpoints
    openai      requests in, answers out, in OpenAI's records
    scheduler   continuous batching, one step loop
    sequence    one answer being made
    handover    leases of blocks on the prefill side, pulls on the decode side
    blocks      the paged KV cache: bookkeeping and bytes
    language    KV bytes in, words out
    timing      how long a step takes
    tokenizer, metrics
"""
