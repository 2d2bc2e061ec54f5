"""Memory of a pool of KV blocks, on the host or on a GPU."""

import ctypes
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MemoryRegion:
    """Address range in the form that NIXL registers."""

    address: int
    size_bytes: int
    memory_type: str  # DRAM or VRAM
    device: int
    owner: Any  # reference that keeps the memory alive


def memory_region(pool: Any) -> MemoryRegion:
    """Return the region of a writable contiguous buffer (mmap, numpy array, …) or tensor."""
    if hasattr(pool, "data_ptr"):
        memory_type, device = ("VRAM", pool.get_device()) if pool.is_cuda else ("DRAM", 0)
        return MemoryRegion(pool.data_ptr(), pool.nbytes, memory_type, device, pool)
    buffer = ctypes.c_char.from_buffer(pool)
    return MemoryRegion(ctypes.addressof(buffer), memoryview(pool).nbytes, "DRAM", 0, buffer)


def allocate_gpu_pool(size_bytes: int) -> Any:
    """Return a torch tensor of bytes on the first visible GPU; None without torch or a GPU."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return torch.empty(size_bytes, dtype=torch.uint8, device="cuda:0")
