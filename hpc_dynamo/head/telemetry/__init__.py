"""Metrics of the head, in Prometheus' format.

    families    table of all metrics; a new metric starts here
    requests    values of requests and connections
    workers     values of workers
    router      values of routing decisions and the index of KV blocks
    planner     values of the planner's decisions
    exposition  the page /metrics
    scrape      readings of the engines' own metrics

docs/reference/metrics.md is generated from the table.
"""
