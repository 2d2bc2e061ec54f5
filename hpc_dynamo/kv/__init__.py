"""KV cache blocks: transfers between processes with NIXL, and events of prefix caches.

- `agent`: one NIXL agent over one pool of blocks
- `memory`: registers host or GPU memory as such a pool
- `nixl`: imports the NIXL wheel that is installed
- `events`: what engines publish about their prefix caches

A transfer between two agents:

    consumer                                        producer
       | <---- metadata(), over any secret channel ----- |
       | add_peer(metadata)                              |
       | pull(peer, remote_blocks, local_blocks)         |
       | ------------- NIXL READ of the blocks --------> |
       | ------------- notification -------------------> | get_notifications(): blocks may be freed
"""
