"""Records of a layout: workers, their shards, and the nodes that they run on."""

from dataclasses import dataclass, replace
from itertools import accumulate

from hpc_dynamo.config import ParallelSizes, Role
from hpc_dynamo.config.schema.topology import ONE_GPU


@dataclass(frozen=True)
class Shard:
    """The part of a worker on one node. `gpus` are indexes among the node's GPUs."""

    node: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Worker:
    """One engine instance. `rank` counts workers of the job, model by model, prefill first.

    `model` is one of `Config.models`; empty in a run of one model.
    """

    rank: int
    role: Role
    shards: tuple[Shard, ...]
    model: str = ""
    parallel: ParallelSizes = ONE_GPU

    @property
    def node(self) -> int:
        """The node that serves this worker's HTTP."""
        return self.shards[0].node

    @property
    def label(self) -> str:
        """For people: its role, and its model where there are several."""
        return f"{self.model} {self.role}".lstrip()


@dataclass(frozen=True)
class NodeGroup:
    """Consecutive nodes of one kind; `kind` is a name of `cluster.hardware`, or empty."""

    hardware: str
    nodes: int
    gpus_per_node: int


@dataclass(frozen=True)
class Plan:
    """The layout of a job: `nodes` machines of `gpus_per_node` GPUs and the workers on them.

    Where nodes are of named kinds `groups` has each kind with its nodes, in their order, and
    `gpus_per_node` is of the largest. `separate_jobs`: each group is a Slurm job of its own.
    """

    nodes: int
    gpus_per_node: int
    workers: tuple[Worker, ...]
    node_groups: tuple[NodeGroup, ...] = ()
    separate_jobs: bool = False

    def on_node(self, node: int) -> tuple[Worker, ...]:
        """Workers whose HTTP is served from this node."""
        return tuple(w for w in self.workers if w.node == node)

    def for_model(self, model: str) -> "Plan":
        """The same with the workers of one model alone."""
        return replace(self, workers=tuple(w for w in self.workers if w.model == model))

    @property
    def first_node(self) -> int:
        """0 but for a further job's."""
        return min(self.used_nodes)

    def shifted(self, rank: int, node: int) -> "Plan":
        """The same, with ranks and nodes that go on from these."""
        return replace(self, workers=tuple(_shifted(w, rank, node) for w in self.workers))

    @property
    def used_nodes(self) -> frozenset[int]:
        """Nodes that any part of a worker is on."""
        return frozenset(shard.node for worker in self.workers for shard in worker.shards)

    @property
    def group_plans(self) -> tuple["Plan", ...]:
        """The plan of each group of nodes; ranks and nodes keep their numbers."""
        if not self.node_groups:
            return (self,)
        ends = tuple(accumulate(group.nodes for group in self.node_groups))
        return tuple(self._part(g, end) for g, end in zip(self.node_groups, ends, strict=True))

    def _part(self, group: NodeGroup, end: int) -> "Plan":
        here = tuple(w for w in self.workers if end - group.nodes <= w.node < end)
        return Plan(group.nodes, group.gpus_per_node, here, (group,))

    def gpus_on(self, node: int) -> int:
        """GPUs of a node; the last group goes on as far as an allocation does."""
        ends = accumulate(group.nodes for group in self.node_groups)
        found = (g for g, end in zip(self.node_groups, ends, strict=True) if node < end)
        return next(found, self).gpus_per_node

    @property
    def head_plan(self) -> "Plan":
        """What the job of the head has of it."""
        return self.group_plans[0] if self.separate_jobs else self

    @property
    def hardware(self) -> str:
        """Of the first nodes."""
        return self.node_groups[0].hardware if self.node_groups else ""

    @property
    def idle_nodes(self) -> int:
        return self.nodes - len(self.used_nodes)


def _shifted(worker: Worker, rank: int, node: int) -> Worker:
    shards = tuple(Shard(shard.node + node, shard.gpus) for shard in worker.shards)
    return replace(worker, rank=worker.rank + rank, shards=shards)
