"""What the modelled computation does to the KV cache, and how answers come out of it."""

from hashlib import blake2b

from hpc_dynamo.simulator.blocks import DIGEST_BYTES, BlockPool, KvMemory, chain
from hpc_dynamo.simulator.language import Speaker
from hpc_dynamo.simulator.sequence import Answer


class Model:
    """Writes blocks as prefill and decode would, publishes the full ones, reads them to speak.

    `identity` makes the answers a model's own: the same on every rank that serves it.
    """

    def __init__(self, identity: str, block_size: int, pool: BlockPool, memory: KvMemory) -> None:
        self.block_size, self.pool, self.memory = block_size, pool, memory
        self.root = blake2b(identity.encode(), digest_size=DIGEST_BYTES).digest()

    def hashes(self, tokens: list[int]) -> list[bytes]:
        """The chained hashes of the full blocks of a prompt."""
        found, parent, size = list[bytes](), self.root, self.block_size
        for start in range(0, len(tokens) - size + 1, size):
            parent = chain(parent, tokens[start : start + size])
            found.append(parent)
        return found

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

    def prefill(self, answer: Answer, tokens: int) -> None:
        """Compute `tokens` more of the prompt: write the blocks that are complete, or the last."""
        size, first = self.block_size, answer.computed // self.block_size
        answer.computed += tokens
        if answer.source is not None:
            return  # pulled: the KV of the last token came along
        complete = answer.computed == answer.prompt_tokens
        for number in range(first, answer.prompt_blocks if complete else answer.computed // size):
            self._write(answer, number)

    def received(self, answer: Answer, blocks: list[int]) -> None:
        """The prompt's `blocks` were written by a transfer; only its last token is to compute."""
        self.memory.received(blocks)
        for number, digest in enumerate(answer.chain):
            self.pool.publish(answer.blocks[number], digest)
        answer.computed = answer.cached = answer.prompt_tokens - 1

    def begin(self, answer: Answer) -> None:
        """The prompt is computed: the KV cache's bytes decide what will be said."""
        seed = blake2b(answer.index.to_bytes(4, "big"))
        for block in answer.blocks[: answer.prompt_blocks]:
            seed.update(self.memory.signature(block))
        answer.speaker = Speaker(seed.digest(), answer.job.prompt[-1], answer.mean_tokens)

    def decode(self, answer: Answer) -> None:
        """Compute the last token; a block that it fills can be found by others from now on."""
        answer.computed += 1
        number, rest = divmod(answer.computed, self.block_size)
        if not rest:
            answer.chain.append(self._digest(answer, number - 1))
            self._write(answer, number - 1)

    def _write(self, answer: Answer, number: int) -> None:
        digest, block = self._digest(answer, number), answer.blocks[number]
        self.memory.write(block, digest)
        if number < len(answer.chain):
            self.pool.publish(block, digest)

    def _digest(self, answer: Answer, number: int) -> bytes:
        """The hash of the tokens in a block, which may be the last one and not full."""
        if number < len(answer.chain):
            return answer.chain[number]
        parent = answer.chain[number - 1] if number else self.root
        start = number * self.block_size
        return chain(parent, answer.tokens[start : start + self.block_size])
