"""Shell commands that start the engines of a layout, for readers of the engine's own guide.

Addresses, ports and keys exist only once a worker starts. They appear as `<node-0>`, `<port-0>`
and `<key>`.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hpc_dynamo.config import Config, with_worker_options
from hpc_dynamo.engines import (
    EngineCommand,
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
    """Number of a port of a worker, shown as a placeholder. Port 0 serves HTTP."""

    def __str__(self) -> str:
        return f"<port-{int(self)}>"


def engine_commands(config: Config, layout: Plan) -> Iterator[str]:
    """Yield command, environment and files of every shard of every worker, as shell text.

    Raises ConfigError if the engine refuses the layout.
    """
    check(config, layout)
    for worker in layout.workers:
        for shard in started_shards(config, worker):
            title = _title(config, worker, shard)
            yield f"# {title}\n{_text(shard_command(config, worker, shard))}"


def started_shards(config: Config, worker: Worker) -> range:
    """Return the shards of a worker that agents start: of an MPI step only the first."""
    return range(1 if is_mpi_step(config, worker) else len(worker.shards))


def shard_command(config: Config, worker: Worker, index: int) -> EngineCommand:
    """Return the command that the agent starts for one shard, with placeholders."""
    view = with_worker_options(config, worker.model, worker.role)
    adapter = engine(view.engine.name)
    shard, own = worker.shards[index], adapter.port_count
    ports = tuple(map(Port, range(own + adapter.rendezvous_port_count)))
    several = len(worker.shards) > 1
    placement = Placement(
        worker,
        f"<node-{shard.node}>",
        ports[:own],
        tuple(map(str, shard.gpus)),
        token="<key>",
        events_folder="<events>",
        log_folder="<logs>",
        shard_index=index,
        rendezvous=ShardRendezvous(f"<node-{worker.node}>", ports[own:]) if several else None,
        interface="<interface>",
    )
    command = in_container(view, placement, adapter.command(view, placement))
    return _with_srun(view, placement, command) if command.container_args else command


def _with_srun(config: Config, placement: Placement, command: EngineCommand) -> EngineCommand:
    """Return the srun command of an engine under Pyxis. The node selects `<mpi>`."""
    worker, mpi_step = placement.worker, is_mpi_step(config, placement.worker)
    shard = None if mpi_step else placement.shard_index
    step = WorkerStep(worker, shard, command.container_args)
    nodes = [f"<node-{shard.node}>" for shard in step.shards]
    mpi = "--mpi=<mpi>" if mpi_step else "--mpi=none"
    argv = step.srun_argv(config.engine, command.argv, nodes, mpi)
    env = {name: value for name, value in command.env.items() if name != "CUDA_VISIBLE_DEVICES"}
    return replace(command, argv=argv, env=env)


def _title(config: Config, worker: Worker, index: int) -> str:
    nodes = [f"<node-{shard.node}>" for shard in worker.shards]
    name = f"worker {worker.rank}, {worker.label}"
    if is_mpi_step(config, worker):
        return f"{name}, on {' '.join(nodes)}: one srun step with one rank per GPU"
    split = f", shard {index + 1} of {len(nodes)}" if len(nodes) > 1 else ""
    return f"{name}, on {nodes[index]}{split}"


def _text(command: EngineCommand) -> str:
    env = [f"{name}={value}" for name, value in command.env.items()]
    lines = ["env", *map(_quoted, env), *map(_joined, _options(command.argv))]
    files = (f"# {name} in <logs>\n{text.rstrip()}" for name, text in command.files.items())
    return "\n".join([" \\\n  ".join(lines), *files])


def _options(argv: Sequence[str]) -> Iterator[list[str]]:
    """Yield the program with its positional arguments, then each option with its values."""
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
    """Quote a word for a shell, unless only its placeholders would need quotes."""
    bare = word.replace("<", "").replace(">", "")
    return word if shlex.quote(bare) == bare else shlex.quote(word)
