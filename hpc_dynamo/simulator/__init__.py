"""An engine without a model: OpenAI's API, modelled time, real KV blocks, real NIXL transfers.

It shows what the rest of the product does when no accelerator is at hand, and it is started,
watched and asked like any other engine: `python -m hpc_dynamo.simulator --help`. It speaks the
prefill/decode dialect of vLLM's NixlConnector, SGLang's or TensorRT-LLM's (`--dialect`).

    __main__    signals, the life of the process
    options     the command line
    server      the HTTP endpoints, over the common HTTP room
    generation  one request under way, to the bytes that its client gets
    openai      requests in: completions, and what chat shares with them; chat, tools, transfer
    prompts     texts, chats and token ids to prompts, with vLLM's refusals
    records     answers out: records whole and in events; forms: text, chat, tool call
    instances   JSON schema in, the smallest JSON that it allows out
    embeddings  vectors made of hashes
    scheduler   continuous batching, one step loop; batch: one step and its limits
    sequence    one answer being made
    model       what the modelled computation does to the KV cache
    handover    leases of blocks on the prefill side, pulls on the decode side
    rooms       the same in SGLang's dialect: a bootstrap server where both sides meet
    blocks      the paged KV cache: bookkeeping and bytes
    events      what the pool took in and gave up, published as vLLM does
    language    KV bytes in, words out
    trtllm      the dialect of TensorRT-LLM, at the edge
    timing      how long a step takes
    tokenizer, metrics, refused
"""
