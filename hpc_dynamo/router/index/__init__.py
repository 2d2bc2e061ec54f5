"""Index of the KV blocks cached on each worker.

- exact: PrefixIndex, blocks that the engines' KV events confirm.
- approximate: ApproximateIndex, blocks expected from routing decisions.
- kv_state: both together, for all workers.
- event_stream: orders one worker's events and requests replays.
- worker_blocks: one worker's blocks by the engine's keys.
- block_owners: the workers of each block, as bits of an integer.
- hashes: chained block hashes, shared with the frontends.
"""
