"""Replacement of failed nodes by spare nodes of the same job. Pure.

The plan of a job does not change. `Replacements` map its nodes to the nodes that run their workers
instead, so `with_replacements` gives the layout at any time.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from hpc_dynamo.topology.records import Plan, Worker

Replacements = Mapping[int, int]  # node of the plan -> node that runs its workers


def with_replacements(plan: Plan, replacements: Replacements) -> Plan:
    """Return the plan with the workers of replaced nodes on their spare nodes."""
    return replace(plan, workers=tuple(_moved(w, replacements) for w in plan.workers))


def _moved(worker: Worker, replacements: Replacements) -> Worker:
    shards = (replace(s, node=replacements.get(s.node, s.node)) for s in worker.shards)
    return replace(worker, shards=tuple(shards))


def replace_failed(
    plan: Plan, replacements: Replacements, failed: Collection[int]
) -> dict[int, int]:
    """Return `replacements` with a spare node for each failed node that runs workers.

    If there are too few spare nodes, the last failed nodes are not replaced.
    """
    present = with_replacements(plan, replacements).used_nodes
    spares = iter(sorted({*range(plan.head_plan.nodes)} - present - {*failed}))
    places = {node: replacements.get(node, node) for node in sorted(plan.head_plan.used_nodes)}
    found = {
        node: next(spares, place) if place in failed else place for node, place in places.items()
    }
    return {node: place for node, place in found.items() if node != place}
