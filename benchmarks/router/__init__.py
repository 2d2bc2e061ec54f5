"""The router's prefix index compared with NVIDIA Dynamo's, on a production trace.

    python -m benchmarks.router                        about an hour: all sizes, three repeats
    python -m benchmarks.router --quick                a minute: 64 workers, 200,000 blocks, once
    python -m benchmarks.router.ranks                  minutes: hit rate of data-parallel ranks
    python -m benchmarks.router --sides hpc-dynamo --blocks 50000000 --workers 64

Events: the KV events of workers with unlimited caches that serve the trace, encoded as vLLM 0.32
does (MessagePack, 32-byte keys). The time runs from the bytes of a message to the updated index.
There is one batch per prompt, one per block of a response, and evictions of 64 blocks per batch.

Decisions: the time from the hashes of a prompt to a worker, which is the look-up plus the selection
by cost. "found" is the look-up only. Hashing is a row of its own, because frontends do it. Finally,
the index is filled with synthetic prompts of 500 blocks, and some of them are looked up.

Each index is measured in its own process, in turn. Dynamo's is the `RadixTree` of its Python
bindings, which its KV router uses. It receives the same messages through the same decoder, with its
own hash function, as JSON events. Its fill times only apply_event on ready JSON; the fill of
hpc_dynamo includes the hashing of the tokens. Both sides select workers with the same function. CPU
times cover all threads of a process.

`python -m benchmarks.router.peer_heads` measures two heads in front of the same engines.
"""
