"""Table of a finished profile."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from hpc_dynamo.planner.profile import EngineProfile, Measurement, Metric

NAMES = {Metric.ttft: "TTFT", Metric.itl: "ITL", Metric.transfer: "transfer and one step"}


def profile_table(profile: EngineProfile) -> Table:
    """Return the measured extremes, and the interpolation error at the points held out."""
    table = Table(title="profile", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("worker", escape(profile.title))
    table.add_row("measured", escape(f"{profile.date} on {profile.hardware}"))
    table.add_row("start", f"{profile.startup_s:.1f} s")
    table.add_row("TTFT without load or cache", _range(_uncached(profile), "prompt tokens"))
    table.add_row("ITL", _range(_by_sequences(profile), "sequences"))
    table.add_row("prompt tokens/s, best", f"{profile.prompt_tokens_per_s:,.0f}")
    table.add_row("answer tokens/s, best", f"{profile.answer_tokens_per_s:,.0f}")
    if profile.kv_bytes_per_token:
        table.add_row("KV transfer", _transfer(profile))
    for what, error in profile.errors.items():
        text = f"error {error.mean:.1%} on average, at most {error.worst:.1%}, {error.count} points"
        table.add_row(f"{NAMES[what]}, interpolated", text)
    return table


def _uncached(profile: EngineProfile) -> list[tuple[int, Measurement]]:
    points = (p for p in profile.of(Metric.ttft) if not p.point.cached_tokens)
    return [(p.point.prompt_tokens, p) for p in points]


def _by_sequences(profile: EngineProfile) -> list[tuple[int, Measurement]]:
    return [(p.point.sequences, p) for p in profile.of(Metric.itl)]


def _range(points: Sequence[tuple[int, Measurement]], unit: str) -> str:
    """Return the latency at the smallest and at the largest size."""
    ends = min(points, key=lambda p: p[0]), max(points, key=lambda p: p[0])
    return " to ".join(f"{1000 * (p.seconds or 0):.1f} ms ({n:,})" for n, p in ends) + f", {unit}"


def _transfer(profile: EngineProfile) -> str:
    token_s = profile.transfer_s_per_byte * profile.kv_bytes_per_token
    each = f"{1e6 * token_s:.1f} µs for a token of {profile.kv_bytes_per_token:,.0f} bytes"
    return f"{each}, {1e9 * profile.transfer_s_per_byte:.2f} s/GB"
