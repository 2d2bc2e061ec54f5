"""Group of layers whose blocks show which prefixes a worker has cached.

A model with several kinds of attention has one KV cache for each kind. vLLM calls them groups and
numbers them by the first layer of each. Layers with a sliding window forget old blocks early, so
a prefix is cached as long as the layers with full attention have its blocks. `kv_cache_spec_kind`
of an event names the kind (vLLM 0.32, vllm/v1/kv_cache_interface.py, KVCacheSpecKind).
"""

from hpc_dynamo.kv.events import BlockStored

FULL_ATTENTION = {"full_attention", "mla_attention", "sink_full_attention"}


class AttentionGroup:
    """The group that is indexed for one worker: the first with full attention.

    Group 0 is used until an event names such a group, and for good if there is none: models with
    sliding windows only, and engines that do not name the kind.
    """

    def __init__(self) -> None:
        self._index = 0
        self._has_full_attention = False

    def includes(self, group_idx: int | None) -> bool:
        """Return True for events of this group, and of engines that have only one."""
        return group_idx is None or group_idx == self._index

    def learn(self, event: BlockStored) -> bool:
        """Use the group of an event with full attention, if it is the first.

        Return True if the group changed: blocks that are indexed so far belong to another one.
        """
        if self._has_full_attention or event.kv_cache_spec_kind not in FULL_ATTENTION:
            return False
        former, self._index = self._index, event.group_idx or 0
        self._has_full_attention = True
        return self._index != former
