"""Exchange of addresses between the agents of a job, at its start.

`mpi` is the default on several nodes of a Slurm job: one MPI allgather in a step of its own. `tcp`
does the same without MPI, at the same time. Its result is used if MPI is missing, fails or hangs.
`address` chooses the address that a node announces. The exchange over TCP:

    agent of node n                               agent of node 0 (head)
      writes nodes/n.json                           binds a port, writes rendezvous.json
      waits for rendezvous.json                     waits for all agents, or for MPI
      ── Hello(node) ─────────────────────────────▶
      ◀────────────────────────────── Roster(nodes)
"""

from hpc_dynamo.bootstrap.exchange import exchange_addresses
from hpc_dynamo.bootstrap.mpi import MpiStep, rank_command

__all__ = ["MpiStep", "exchange_addresses", "rank_command"]
