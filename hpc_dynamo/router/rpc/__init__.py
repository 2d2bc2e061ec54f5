"""Connection between the router in the head and the frontend processes.

    frontend (RemoteRouter)                      head (RouterServer)
        |------ RouteCall(id, request) ---------->|  queued while all workers are busy
        |<----- LeaseGranted(id, workers) --------|  or CallFailed(id, error)
        |------ LeaseUpdate(id, prefilled) ------>|
        |------ LeaseUpdate(id, first_token) ---->|
        |------ LeaseUpdate(id, progress, n) ---->|
        |<----- LeasedWorkerLost(id, rank) -------|  only if a worker is removed
        |------ LeaseUpdate(id, released) ------->|
        |------ ExplainCall / LoadsCall / SleepCall -->|
        |<----- CallResult(id, json) -------------|  or CallFailed(id, error)
        |------ ReportToHead(content) ----------->|  no reply
        |<----- ViewUpdate(view) -----------------|  every second and on every change

Calls are answered in any order. CancelCall(id) withdraws a call. When a connection ends, the server
releases its leases and cancels its calls.
"""
