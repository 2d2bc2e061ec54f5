"""Where a pool of KV blocks lies: in host memory, or in a GPU's."""

import ctypes
import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Memory:
    """An address range as NIXL wants it named; `kind` is DRAM or VRAM."""

    address: int
    size_bytes: int
    kind: str
    device: int
    owner: Any  # keeps it from being freed


def memory_of(pool: Any) -> Memory:
    """Of a writable contiguous buffer (mmap, bytearray, numpy array) or a torch tensor."""
    if hasattr(pool, "data_ptr"):
        kind, device = ("VRAM", pool.get_device()) if pool.is_cuda else ("DRAM", 0)
        return Memory(pool.data_ptr(), pool.nbytes, kind, device, pool)
    held = ctypes.c_char.from_buffer(pool)
    return Memory(ctypes.addressof(held), memoryview(pool).nbytes, "DRAM", 0, held)


def gpu_pool(size_bytes: int) -> Any:
    """Bytes on the first visible GPU, a torch tensor; None without torch or without a GPU."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return torch.empty(size_bytes, dtype=torch.uint8, device="cuda:0")
