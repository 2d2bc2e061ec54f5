"""Checks of the nodes of a job: what would fail or slow down a run, and how to fix it.

`task` runs on every node for `hpc-dynamo doctor`. `preflight` is the fast part of it, which every
job runs before it loads a model.

    task           one node: collects facts, connects to the others, measures links
    coordinator    node 0: directs the nodes and writes the report
    facts          facts of a node; checks: a function per check of the facts
    connectivity   ports and clocks; link: measures NIXL links in a process of its own
    nixl_endpoint  controls that process; mpi_step: tries MPI ranks in a Slurm step
    analysis       findings that need the results of all nodes
    records        wire records and the report

    node                                        node 0 (coordinator)
      | NodeReady (facts, NIXL metadata) ---------->|
      |<--------------------- ConnectPeers (nodes) -|
      | PeersConnected (clock, errors) ------------>|
      |<------------ MeasureLink (peer), in rounds -|
      | LinkResult -------------------------------->|
      |<-------------------------------- DoctorDone |
"""
