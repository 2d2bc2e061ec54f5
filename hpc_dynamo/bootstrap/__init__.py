"""Exchange of addresses between the agents of a job, at its start.

`tcp` is the default; `mpi` does the same with one MPI allgather. `address` chooses the address
that a node announces.

    agent of node n                               agent of node 0 (head)
      writes nodes/n.json                           binds a port, writes rendezvous.json
      waits for rendezvous.json                     writes roster.json, once all have come
      ── Hello(node) ─────────────────────────────▶
      ◀────────────────────────────── Roster(nodes)
"""

from hpc_dynamo.bootstrap.exchange import exchange_addresses

__all__ = ["exchange_addresses"]
