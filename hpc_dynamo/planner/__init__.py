"""Planner: how many workers of each role a load needs, and when to change roles or scale out.

- planner: Planner, one decision per interval. It has no clock and no I/O.
- signals, collect, prompt_lengths: what the planner observes of an interval.
- forecast/: prediction of the next interval's load.
- threshold_rule, sla_rule: two ways to compute the workers that a load needs.
- online_correction, queueing: the models of the SLA rule.
- target_split: from needed workers to a split, and to the capacity gap.
- scale_out: when to submit and release extra jobs.
- profile, interpolation, performance, profile_plot: profiles of an engine.
- records: planner.jsonl.

The head (head/scaling) or the simulation executes the decisions.
"""
