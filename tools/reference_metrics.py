"""Reference page of the metrics that the head exports, from the table of families."""

from hpc_dynamo.head.telemetry.families import FAMILIES

PAGE = "metrics.md"
INTRODUCTION = """
# Metrics

`GET /metrics` of the endpoint returns these metrics in Prometheus' text format. It requires the
key of the run. With several models, metrics of one model also have the label `model`. Engines
export their own metrics on their own ports.

```yaml
# prometheus.yml on the head node; the port is serve.port
scrape_configs:
  - job_name: hpc_dynamo
    authorization: {credentials_file: /shared/runs/afternoon/api_key}
    static_configs: [{targets: ["localhost:8000"]}]
```

| metric | type | labels | meaning |
|---|---|---|---|
"""


def page() -> str:
    """Return the page as Markdown."""
    rows = (
        f"| `{each.sample_name}` | {each.kind} | {', '.join(f'`{n}`' for n in each.labels)} "
        f"| {each.help} |"
        for each in FAMILIES
    )
    return INTRODUCTION.rstrip() + "\n" + "\n".join(rows)
