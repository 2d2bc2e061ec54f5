"""Workers of a job, as they join, report and leave.

    agents       agents of the job and their workers, over the control plane
    layout       nodes of the job and the workers on each
    spare_nodes  replacement of nodes that fail and return
    kv_events    KV events of all nodes of a worker, to its router
    reports      queues of the reports of all workers
    losses       last report of a worker, failure of a model without workers
    shards       messages between the shards of multi-node workers
    external     engines that hpc_dynamo did not start
    peer_heads   other heads in front of the same engines

`agents` and `external` implement WorkerDirectory for the workloads.
"""
