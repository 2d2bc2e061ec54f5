"""What the modelled computation does to the KV cache, and how answers come out of it."""

from hashlib import blake2b

from hpc_dynamo.simulator.blocks import DIGEST_BYTES, BlockPool, KvMemory, chain, chains
from hpc_dynamo.simulator.events import Journal
from hpc_dynamo.simulator.sequence import Answer
from hpc_dynamo.simulator.token_generator import Script, Speaker


class Model:
    """Writes blocks as prefill and decode would, publishes the full ones, reads them to speak.

    `identity` makes the answers a model's own: the same on every rank that serves it.
    """

    def __init__(self, identity: str, block_size: int, pool: BlockPool, memory: KvMemory) -> None:
        self.block_size, self.pool, self.memory = block_size, pool, memory
        self._identity = identity
        self._journal: Journal | None = None

    def keep(self, journal: Journal) -> None:
        """From now on write down what can be found in the cache, and what no more."""
        self._journal, self.pool.on_evict = journal, journal.removed

    def root(self, adapter: str) -> bytes:
        """What the first block of a prompt follows: each adapter has blocks of its own."""
        whose = f"{self._identity}/{adapter}" if adapter else self._identity
        return blake2b(whose.encode(), digest_size=DIGEST_BYTES).digest()

    def hashes(self, tokens: list[int], adapter: str = "") -> list[bytes]:
        """The chained hashes of the full blocks of a prompt."""
        return chains(self.root(adapter), tokens, self.block_size)

    def place(self, answer: Answer) -> bool:
        """Take all blocks an answer may need, cached ones first; False if they are not there.

        At least the last token of the prompt is left to compute: the answer begins with it.
        """
        useful = (answer.prompt_tokens - 1) // self.block_size
        cached = self.pool.match(answer.chain[:useful])
        blocks = self.pool.take(cached, answer.most_blocks - len(cached))
        if blocks is None:
            return False
        answer.blocks = blocks
        answer.computed = answer.cached = len(cached) * self.block_size
        return True

    def fill(self, answer: Answer, tokens: int) -> None:
        """Write and publish the blocks that the next `tokens` of the prompt complete.

        This is done when the step is planned, not when it ends: as in vLLM, a later prompt of the
        same step finds these blocks.
        """
        if answer.source is None:  # pulled blocks include the last token's
            size = self.block_size
            self._write(answer, answer.computed // size, (answer.computed + tokens) // size)

    def prefill(self, answer: Answer, tokens: int) -> None:
        """Count `tokens` of the prompt as computed; at its end, write the last partial block."""
        size = self.block_size
        answer.computed += tokens
        full = answer.computed // size
        done = answer.computed == answer.prompt_tokens
        if answer.source is None and done and full < answer.prompt_blocks:
            parent = answer.chain[full - 1] if full else self.root(answer.job.adapter)
            last = chain(parent, answer.tokens[full * size :])
            self.memory.write([answer.blocks[full]], [last])

    def received(self, answer: Answer, blocks: list[int]) -> None:
        """The prompt's `blocks` were written by a transfer; only its last token is to compute."""
        self.memory.received(blocks)
        self._publish(answer, 0, len(answer.chain))
        answer.computed = answer.cached = answer.prompt_tokens - 1

    def begin(self, answer: Answer) -> None:
        """The prompt is computed: the KV cache's bytes decide what will be said."""
        if answer.job.sampling.script:
            answer.voice = Script(answer.job.sampling.script)
            return
        blocks = answer.blocks[: answer.prompt_blocks]
        read = b"".join(self.memory.signatures(blocks))
        seed = blake2b(answer.index.to_bytes(4, "big") + read).digest()
        answer.voice = Speaker(seed, answer.job.prompt[-1], answer.mean_tokens)

    def decode(self, answer: Answer) -> None:
        """Compute the last token; a block that it fills can be found by others from now on."""
        answer.computed += 1
        number, rest = divmod(answer.computed, self.block_size)
        if not rest:
            parent = answer.chain[-1] if answer.chain else self.root(answer.job.adapter)
            answer.chain.append(chain(parent, answer.tokens[-self.block_size :]))
            self._write(answer, number - 1, number)

    def _write(self, answer: Answer, first: int, end: int) -> None:
        """The full blocks from `first` up to `end`."""
        self.memory.write(answer.blocks[first:end], answer.chain[first:end])
        self._publish(answer, first, end)

    def _publish(self, answer: Answer, first: int, end: int) -> None:
        new = self.pool.publish(answer.blocks[first:end], answer.chain[first:end])
        if self._journal and new:
            numbers, adapter = [first + i for i in new], answer.job.adapter
            self._journal.stored(answer.chain, answer.tokens, numbers, adapter)

    def reset(self) -> bool:
        """Forget all cached blocks; nothing happens and False is returned while any is held."""
        done = self.pool.clear()
        if self._journal and done:
            self._journal.cleared()
        return done
