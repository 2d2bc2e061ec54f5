"""Tiers of cached blocks. A worker loads the blocks that are only in its host memory or on disk.

KV events name the tier as their medium. Source: vLLM 0.32, distributed/kv_events.py and
v1/kv_offload; SGLang 0.5.23, srt/disaggregation/kv_events.py (StorageMedium).
"""

LOWER_TIERS = HOST, DISK = (1, 2)
TIERS = {"CPU": HOST, "CPU_PINNED": HOST, "STORAGE": DISK, "DISK": DISK}
# Locality and medium of blocks in a tier that all workers share.
REMOTE, EXTERNAL = "REMOTE", "EXTERNAL"


def tier_of(medium: str) -> int:
    """Return the tier of a medium; 0 is the device, and any medium that is not known."""
    return TIERS.get(medium.upper(), 0)


def is_shared(medium: str | None, locality: str | None) -> bool:
    """Return True for blocks that do not belong to one worker."""
    return locality == REMOTE or medium == EXTERNAL
