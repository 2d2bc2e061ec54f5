"""Records of a layout: workers, their shards, and the nodes that they run on."""

from dataclasses import dataclass, replace
from itertools import accumulate

from hpc_dynamo.config import ParallelSizes, Role
from hpc_dynamo.config.schema.topology import ONE_GPU


@dataclass(frozen=True)
class Shard:
    """Share of a worker on one node. `gpus` are indexes among the GPUs of the node."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Worker:
    """One engine instance. Ranks count the workers of the job, model by model, prefill first.

    `model` is a name of `Config.models`, or empty in a run of one model.
    """

    rank: int
    role: Role
    shards: tuple[Shard, ...]
    model: str = ""
    parallel: ParallelSizes = ONE_GPU

    @property
    def node(self) -> int:
        """Return the node that serves this worker's HTTP."""
        return self.shards[0].node

    @property
    def label(self) -> str:
        """Return the role for messages, after the model if there are several."""
        return f"{self.model} {self.role}".lstrip()


@dataclass(frozen=True)
class NodeGroup:
    """Consecutive nodes with the same hardware, a name of `cluster.hardware` or empty."""

    hardware: str
    nodes: int
    gpus_per_node: int


@dataclass(frozen=True)
class Plan:
    """Layout of a job: `nodes` machines with `gpus_per_node` GPUs, and the workers on them.

    With named hardware, `node_groups` lists the groups in the order of their nodes, and
    `gpus_per_node` is that of the largest. `separate_jobs`: each group is a Slurm job of its own.
    The last `spare_nodes` of the nodes have no workers until another node fails.
    """

    nodes: int
    gpus_per_node: int
    workers: tuple[Worker, ...]
    node_groups: tuple[NodeGroup, ...] = ()
    separate_jobs: bool = False
    spare_nodes: int = 0

    def on_node(self, node: int) -> tuple[Worker, ...]:
        """Return the workers whose HTTP is served from this node."""
        return tuple(w for w in self.workers if w.node == node)

    def for_model(self, model: str) -> "Plan":
        """Return the plan with only the workers of one model."""
        return replace(self, workers=tuple(w for w in self.workers if w.model == model))

    @property
    def first_node(self) -> int:
        """Return the first node; 0 except in an extra job."""
        return min(self.used_nodes)

    def shifted(self, rank: int, node: int) -> "Plan":
        """Return the plan with ranks and nodes that start at these numbers."""
        return replace(self, workers=tuple(_shifted(w, rank, node) for w in self.workers))

    @property
    def used_nodes(self) -> frozenset[int]:
        """Return the nodes that have a shard of any worker."""
        return frozenset(shard.node for worker in self.workers for shard in worker.shards)

    @property
    def group_plans(self) -> tuple["Plan", ...]:
        """Return the plan of each node group; ranks and nodes keep their numbers."""
        if not self.node_groups:
            return (self,)
        ends = tuple(accumulate(group.nodes for group in self.node_groups))
        return tuple(
            self._group_plan(g, end) for g, end in zip(self.node_groups, ends, strict=True)
        )

    def _group_plan(self, group: NodeGroup, end: int) -> "Plan":
        here = tuple(w for w in self.workers if end - group.nodes <= w.node < end)
        spare = self.spare_nodes if end == self.nodes else 0
        return Plan(group.nodes, group.gpus_per_node, here, (group,), spare_nodes=spare)

    def gpus_on(self, node: int) -> int:
        """Return the GPUs of a node. Nodes after the plan count to the last group."""
        ends = accumulate(group.nodes for group in self.node_groups)
        found = (g for g, end in zip(self.node_groups, ends, strict=True) if node < end)
        return next(found, self).gpus_per_node

    @property
    def head_plan(self) -> "Plan":
        """Return the plan of the head's job: the first group if groups are separate jobs."""
        return self.group_plans[0] if self.separate_jobs else self

    @property
    def hardware(self) -> str:
        """Return the hardware of the first node group."""
        return self.node_groups[0].hardware if self.node_groups else ""


def _shifted(worker: Worker, rank: int, node: int) -> Worker:
    shards = tuple(Shard(shard.node + node, shard.gpus) for shard in worker.shards)
    return replace(worker, rank=worker.rank + rank, shards=shards)
