"""Publication of KV events by data-parallel rank, each on the node that the rank runs on."""

import argparse
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial

from hpc_dynamo.simulator.events import KvEventJournal, KvEventsConfig
from hpc_dynamo.simulator.nodes import FollowerNodes, node_of_rank
from hpc_dynamo.simulator.scheduler import Scheduler
from hpc_dynamo.wire import KvEventPublisher

Publish = Callable[[bytes], Awaitable[None]]
Loops = list[Coroutine[None, None, None]]


@contextlib.contextmanager
def event_publishing(
    args: argparse.Namespace, scheduler: Scheduler, nodes: FollowerNodes
) -> Iterator[Loops]:
    """Publish the KV events of all ranks, if the options ask for it. Yield the tasks of it."""
    if not KvEventsConfig.parse(args.kv_events_config).enabled:
        yield []
        return
    with local_publishers(args) as (publishers, loops):
        for dp_rank, own in enumerate(scheduler.ranks):
            publish: Publish = partial(nodes.publish, node_of_rank(args, dp_rank), dp_rank)
            if dp_rank in publishers:
                publish = publishers[dp_rank].publish
            journal = KvEventJournal(args.block_size, dp_rank)
            own.model.record_events(journal)
            own.publish_events = partial(journal.publish, publish)
        yield loops


@contextlib.contextmanager
def local_publishers(
    args: argparse.Namespace,
) -> Iterator[tuple[dict[int, KvEventPublisher], Loops]]:
    """Open the publishers of the ranks of this node. Yield them by rank, and their tasks."""
    config = KvEventsConfig.parse(args.kv_events_config)
    # With MPI, all nodes have the endpoints of node 0.
    publishes = config.enabled and not (args.mpi and args.node_rank)
    ranks = range(args.data_parallel_size if publishes else 0)
    with contextlib.ExitStack() as stack:
        publishers = dict[int, KvEventPublisher]()
        for dp_rank in ranks:
            if node_of_rank(args, dp_rank) == args.node_rank:
                publisher = _publisher(config, dp_rank)
                publishers[dp_rank] = stack.enter_context(contextlib.closing(publisher))
        yield publishers, [publisher.serve_replays() for publisher in publishers.values()]


def _publisher(config: KvEventsConfig, dp_rank: int) -> KvEventPublisher:
    ends = config.endpoint_of(dp_rank), config.replay_endpoint_of(dp_rank)
    return KvEventPublisher(*ends, topic=config.topic, buffer_steps=config.buffer_steps)


async def publish_received(
    publishers: dict[int, KvEventPublisher], dp_rank: int, payload: bytes
) -> None:
    """Publish events that node 0 sent to this node."""
    if dp_rank in publishers:
        await publishers[dp_rank].publish(payload)
