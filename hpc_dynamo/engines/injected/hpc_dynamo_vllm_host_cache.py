"""Copies of vLLM's OffloadingConnector between a KV cache on the CPU and its host cache.

vLLM's own copies use CUDA streams, and it refuses the connector without a GPU. It loads this module
by the settings `spec_name` and `spec_module_path` of the connector. Everything but the copies is
vLLM's: which blocks are stored, found, loaded and evicted, events and metrics. This file runs in
the engine's environment and may need only PyTorch and vLLM.

Source: vLLM 0.32, v1/kv_offload/cpu/spec.py and gpu_worker.py.
"""

import time
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class HostCopySpec(CPUOffloadingSpec):  # type: ignore[misc]
    """vLLM's cache in host memory, with copies that need no GPU."""

    _worker: "HostCopyWorker | None"

    def get_worker(self, kv_caches: Any) -> "HostCopyWorker":
        if self.blocks_per_chunk != 1:
            raise ValueError("block_size and blocks_per_chunk of the connector need a GPU")
        self._worker = self._worker or HostCopyWorker(kv_caches, self.num_chunks)
        return self._worker


class HostCopyWorker(OffloadingWorker):  # type: ignore[misc]
    """Copies the blocks of a job before `submit_store` or `submit_load` returns."""

    def __init__(self, kv_caches: Any, capacity_blocks: int) -> None:
        self._layers_of_groups = kv_caches.group_data_refs
        self._device = [
            cache.tensor.view(torch.int8).view(-1, cache.page_size_bytes)
            for cache in kv_caches.tensors
        ]
        self._host = [
            torch.zeros((capacity_blocks, pages.shape[1]), dtype=torch.int8)
            for pages in self._device
        ]
        self._finished: list[Any] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        groups = src_spec.group_sizes
        self._copy(job_id, groups, self._device, src_spec.block_ids, self._host, dst_spec.block_ids)
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        groups = dst_spec.group_sizes
        self._copy(job_id, groups, self._host, src_spec.block_ids, self._device, dst_spec.block_ids)
        return True

    def _copy(
        self,
        job_id: int,
        group_sizes: Sequence[int],
        sources: Sequence[Any],
        source_blocks: Any,
        targets: Sequence[Any],
        target_blocks: Any,
    ) -> None:
        """Copy the blocks of each group of layers. Blocks are listed group by group."""
        start, size = time.monotonic(), 0
        bounds = pairwise(accumulate(group_sizes, initial=0))
        for layers, (first, end) in zip(self._layers_of_groups, bounds, strict=True):
            source, target = (
                torch.from_numpy(blocks[first:end]).long()
                for blocks in (source_blocks, target_blocks)
            )
            for tensor in {layer.tensor_idx for layer in layers}:
                targets[tensor][target] = sources[tensor][source]
                size += source.numel() * sources[tensor].shape[1]
        self._finished.append(TransferResult(job_id, True, size, time.monotonic() - start))

    def get_finished(self) -> list[Any]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Return at once: no copy is pending."""
