"""What would be started, worker by worker: for people who know their engine's own guide.

Addresses and ports are found when a worker starts, and its key is nobody's to see: they are shown
as `<node-0>`, `<port-0>` and `<key>`.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hpc_dynamo.config import Config, with_worker_options
from hpc_dynamo.engines import (
    Command,
    Placement,
    ShardRendezvous,
    check,
    engine,
    in_container,
    is_mpi_step,
)
from hpc_dynamo.launch.mpi_step import WorkerStep
from hpc_dynamo.topology import Plan, Worker


class Port(int):
    """Counts the ports of a worker; the first is for HTTP."""

    def __str__(self) -> str:
        return f"<port-{int(self)}>"


def engine_commands(config: Config, layout: Plan) -> Iterator[str]:
    """Command, environment and files of every worker on each of its nodes, as a shell has them.

    Raises ConfigError where the engine would not be started.
    """
    check(config, layout)
    for worker in layout.workers:
        for part in started_shards(config, worker):
            title = _title(config, worker, part)
            yield f"# {title}\n{_text(shard_command(config, worker, part))}"


def started_shards(config: Config, worker: Worker) -> range:
    """Of a worker, those that agents start: of an MPI world the first alone."""
    return range(1 if is_mpi_step(config, worker) else len(worker.shards))


def shard_command(config: Config, worker: Worker, part: int) -> Command:
    """What the agent would start on one of a worker's nodes, by our placeholders."""
    view = with_worker_options(config, worker.model, worker.role)
    adapter = engine(view.engine.name)
    shard, own = worker.shards[part], adapter.port_count
    ports = tuple(map(Port, range(own + adapter.rendezvous_port_count)))
    meeting = (
        ShardRendezvous(f"<node-{worker.node}>", ports[own:]) if len(worker.shards) > 1 else None
    )
    place = Placement(
        worker,
        f"<node-{shard.node}>",
        ports[:own],
        tuple(map(str, shard.gpus)),
        token="<key>",
        events_folder="<events>",
        log_folder="<logs>",
        shard_index=part,
        rendezvous=meeting,
        interface="<interface>",
    )
    return _step(view, place, in_container(view, place, adapter.command(view, place)))


def _step(config: Config, place: Placement, command: Command) -> Command:
    """Where Pyxis starts it: the line of srun. `<mpi>` is found out on the node."""
    if not command.container_args:
        return command
    worker, many = place.worker, is_mpi_step(config, place.worker)
    step = WorkerStep(worker, None if many else place.shard_index, command.container_args)
    nodes = [f"<node-{shard.node}>" for shard in step.shards]
    mpi = "--mpi=<mpi>" if many else "--mpi=none"
    argv = step.srun_argv(config, command.argv, nodes, mpi)
    env = {name: value for name, value in command.env.items() if name != "CUDA_VISIBLE_DEVICES"}
    return replace(command, argv=argv, env=env)


def _title(config: Config, worker: Worker, part: int) -> str:
    nodes, who = (
        [f"<node-{s.node}>" for s in worker.shards],
        f"worker {worker.rank}, {worker.label}",
    )
    if is_mpi_step(config, worker):
        return f"{who}, on {' '.join(nodes)}: each rank of a step of srun, a rank a GPU"
    split = f", part {part + 1} of {len(nodes)}" if len(nodes) > 1 else ""
    return f"{who}, on {nodes[part]}{split}"


def _text(command: Command) -> str:
    env = [f"{name}={value}" for name, value in command.env.items()]
    lines = ["env", *map(_quoted, env), *map(_joined, _options(command.argv))]
    files = (f"# {name} in <logs>\n{text.rstrip()}" for name, text in command.files.items())
    return "\n".join([" \\\n  ".join(lines), *files])


def _options(argv: Sequence[str]) -> Iterator[list[str]]:
    """The program with what it runs, then each option with its values."""
    row = list[str]()
    for word in argv:
        if word.startswith("--") and row:
            yield row
            row = []
        row.append(word)
    yield row


def _joined(words: Sequence[str]) -> str:
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """For a shell, but for our placeholders."""
    bare = word.replace("<", "").replace(">", "")
    return word if shlex.quote(bare) == bare else shlex.quote(word)
