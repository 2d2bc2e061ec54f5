"""Fields of `topology`: the number and shape of the workers of each role."""

from dataclasses import dataclass
from enum import StrEnum

from hpc_dynamo.config.schema.setting import section, setting

DEFAULT_HARDWARE = ""  # nodes of pools that name no entry of `cluster.hardware`


class Role(StrEnum):
    """Phases of a request that a worker computes."""

    prefill = "prefill"
    decode = "decode"
    aggregated = "aggregated"


class TopologyKind(StrEnum):
    """Kind of topology: workers compute both phases of a request, or only one of them."""

    aggregated = "aggregated"
    disaggregated = "disaggregated"


@dataclass(frozen=True)
class ParallelSizes:
    """Parallel sizes of one worker."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def replica(self) -> int:
        """GPUs of one data-parallel replica."""
        return self.tensor * self.pipeline

    @property
    def gpus(self) -> int:
        """GPUs of the worker, on an engine that computes on GPUs."""
        return self.replica * self.data


ONE_GPU = ParallelSizes()


@dataclass(frozen=True)
class Pool:
    """Workers of one role. A worker takes tensor x pipeline x data parallel GPUs."""

    workers: int = setting(0, "Number of workers.", ge=0)
    tensor_parallel: int = setting(1, "Tensor-parallel size of each worker.", ge=1)
    pipeline_parallel: int = setting(1, "Pipeline-parallel size of each worker.", ge=1)
    data_parallel: int = setting(1, "Data-parallel size of each worker.", ge=1)
    hardware: str = setting(
        DEFAULT_HARDWARE, "Entry of `cluster.hardware` to run on. Empty: the default nodes."
    )

    @property
    def parallel(self) -> ParallelSizes:
        """Parallel sizes of one worker."""
        return ParallelSizes(self.tensor_parallel, self.pipeline_parallel, self.data_parallel)

    @property
    def gpus(self) -> int:
        """GPUs of one worker, on an engine that computes on GPUs."""
        return self.parallel.gpus


@dataclass(frozen=True)
class Topology:
    """Number and shape of the workers of each role."""

    kind: TopologyKind = setting(
        TopologyKind.aggregated,
        "Aggregated workers compute whole requests. Disaggregated ones compute prefill or decode. "
        "The command line selects `topology=disaggregated` if nothing else is given.",
    )
    nodes: int | None = setting(
        None, "Number of nodes. Null: the fewest that hold the workers.", unit="nodes", ge=1
    )
    aggregated: Pool = section(Pool(), "Pool of aggregated workers.")
    prefill: Pool = section(Pool(), "Pool of prefill workers.")
    decode: Pool = section(Pool(), "Pool of decode workers.")

    @property
    def pools(self) -> tuple[tuple[Role, Pool], ...]:
        """The pools that this kind of topology runs, prefill first."""
        if self.kind is TopologyKind.aggregated:
            return ((Role.aggregated, self.aggregated),)
        return ((Role.prefill, self.prefill), (Role.decode, self.decode))
