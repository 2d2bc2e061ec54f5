"""Effects of the modelled computation on the KV cache, and outputs computed from the cache."""

from collections.abc import Iterable
from hashlib import blake2b

from hpc_dynamo.simulator.blocks import (
    DIGEST_BYTES,
    BlockPool,
    KvMemory,
    hash_block,
    hash_blocks,
)
from hpc_dynamo.simulator.events import KvEventJournal
from hpc_dynamo.simulator.sequence import OutputSequence
from hpc_dynamo.simulator.token_generator import FixedGenerator, WordGenerator


class SimulatedModel:
    """Writes and publishes blocks as prefill and decode would, and reads them for the output.

    Models with the same `identity` give the same outputs on every rank.
    """

    def __init__(self, identity: str, block_size: int, pool: BlockPool, memory: KvMemory) -> None:
        self.block_size, self.pool, self.memory = block_size, pool, memory
        self._identity = identity
        self._journal: KvEventJournal | None = None

    def record_events(self, journal: KvEventJournal) -> None:
        """Record changes of the prefix cache in `journal` from now on."""
        self._journal, self.pool.on_evict = journal, journal.removed

    def root_hash(self, adapter: str) -> bytes:
        """Return the parent hash of a prompt's first block. Each adapter has its own."""
        identity = f"{self._identity}/{adapter}" if adapter else self._identity
        return blake2b(identity.encode(), digest_size=DIGEST_BYTES).digest()

    def block_hashes(self, tokens: list[int], adapter: str = "") -> list[bytes]:
        """Return the chained hashes of a prompt's full blocks."""
        return hash_blocks(self.root_hash(adapter), tokens, self.block_size)

    def allocate(self, sequence: OutputSequence) -> bool:
        """Take all blocks that a sequence may need, or return False if too few are free.

        Cached blocks are reused. The prompt's last token is always left to compute, because
        the output depends on it.
        """
        reusable = (sequence.prompt_tokens - 1) // self.block_size
        cached = self.pool.find_cached(sequence.block_hashes[:reusable])
        blocks = self.pool.allocate(cached, sequence.max_blocks - len(cached))
        if blocks is None:
            return False
        sequence.blocks = blocks
        sequence.computed_tokens = sequence.cached_tokens = len(cached) * self.block_size
        return True

    def write_full_blocks(self, sequence: OutputSequence, tokens: int) -> None:
        """Write and publish the blocks that the next `tokens` of the prompt complete.

        This happens when the step is planned, not when it ends. A later prompt of the same step
        therefore finds these blocks, as in vLLM.
        """
        if sequence.remote_blocks is None:  # pulled blocks include the last token's
            size, computed = self.block_size, sequence.computed_tokens
            self._write(sequence, computed // size, (computed + tokens) // size)

    def advance_prefill(self, sequence: OutputSequence, tokens: int) -> None:
        """Count `tokens` of the prompt as computed. At its end, write the last partial block."""
        size = self.block_size
        sequence.computed_tokens += tokens
        full = sequence.computed_tokens // size
        done = sequence.computed_tokens == sequence.prompt_tokens
        if sequence.remote_blocks is None and done and full < sequence.prompt_blocks:
            last = hash_block(self._parent(sequence, full), sequence.tokens[full * size :])
            self.memory.record_computed([sequence.blocks[full]], [last])

    def accept_pulled_blocks(self, sequence: OutputSequence, blocks: list[int]) -> None:
        """Publish the prompt after a transfer wrote `blocks`. Its last token is left to compute."""
        self.memory.invalidate(blocks)
        self._publish(sequence, 0, len(sequence.block_hashes))
        sequence.computed_tokens = sequence.cached_tokens = sequence.prompt_tokens - 1

    def start_output(self, sequence: OutputSequence) -> None:
        """Create the token generator of a computed prompt from the bytes of its blocks."""
        if fixed := sequence.group.sampling.fixed_output:
            sequence.generator = FixedGenerator(fixed)
            return
        sequence.generator = WordGenerator(
            sequence.tokens,
            sequence.block_hashes,
            self.root_hash(sequence.group.adapter),
            block_size=self.block_size,
            mean_tokens=sequence.mean_tokens,
            salt=sequence.index ^ self._damage(sequence),
        )

    def _damage(self, sequence: OutputSequence) -> int:
        """Return 0 if the blocks hold what the prompt's computation writes, else a hash of them."""
        full = sequence.prompt_tokens // self.block_size
        expected = sequence.block_hashes[:full]
        if full < sequence.prompt_blocks:
            rest = sequence.tokens[full * self.block_size :]
            expected.append(hash_block(self._parent(sequence, full), rest))
        read = self.memory.signatures(sequence.blocks[: sequence.prompt_blocks])
        if read == expected:
            return 0
        return int.from_bytes(blake2b(b"".join(read), digest_size=8).digest(), "big")

    def advance_decodes(self, sequences: Iterable[OutputSequence]) -> list[OutputSequence]:
        """Compute the last token of each unfinished sequence, and return these sequences."""
        running = [each for each in sequences if each.finish_reason is None]
        for sequence in running:
            self._advance_decode(sequence)
        return running

    def _advance_decode(self, sequence: OutputSequence) -> None:
        """Compute the last token. If it fills a block, write and publish the block."""
        sequence.computed_tokens += 1
        full, rest = divmod(sequence.computed_tokens, self.block_size)
        if not rest:
            parent = self._parent(sequence, full - 1)
            tokens = sequence.tokens[-self.block_size :]
            sequence.block_hashes.append(hash_block(parent, tokens))
            self._write(sequence, full - 1, full)

    def reset_cache(self) -> bool:
        """Empty the prefix cache. If any block is referenced, do nothing and return False."""
        done = self.pool.clear()
        if self._journal and done:
            self._journal.cleared()
        return done

    def _parent(self, sequence: OutputSequence, index: int) -> bytes:
        """Return the hash before block `index` of a sequence."""
        if index:
            return sequence.block_hashes[index - 1]
        return self.root_hash(sequence.group.adapter)

    def _write(self, sequence: OutputSequence, first: int, end: int) -> None:
        blocks, hashes = sequence.blocks[first:end], sequence.block_hashes[first:end]
        self.memory.record_computed(blocks, hashes)
        self._publish(sequence, first, end)

    def _publish(self, sequence: OutputSequence, first: int, end: int) -> None:
        hashes = sequence.block_hashes
        new = self.pool.publish(sequence.blocks[first:end], hashes[first:end])
        if self._journal and new:
            indexes, adapter = [first + i for i in new], sequence.group.adapter
            self._journal.stored(hashes, sequence.tokens, indexes, adapter)
