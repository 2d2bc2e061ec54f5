"""OpenAI-compatible endpoint: processes on the head node that share one port and the head's router.

The head starts `python -m hpc_dynamo.frontend` once per process (`__main__`).

- `app`: request handler; `auth`, `cors`: access; `errors`: error formats of the client APIs
- `openapi`, `status_endpoints`: published document, health, models, workers, metrics
- `model_endpoints`, `request_translator`, `multipart`, `routing_hints`: from an HTTP request to an
  EngineRequest for one model
- `relay`: response to the client; `stats`: counters that the head collects
- `engine_passthrough`: paths that only engines implement
- `forward`: requests that the next job of the run answers
- `tokenizer_check`: compares token ids with those of the engine

A frontend and the head, over a unix socket:

    frontend                                   head
       | ---- RoutingRequest ----------------> | router queues it until workers are free
       | <--- Lease: prefill and decode worker |
       | ---- lease events: first token, … --> |
       | <--- RunView, on changes and every 1 s| workers, models, successor, metrics
       | ---- FrontendReport, every 1 s -----> | telemetry
"""
