"""KV events of the simulator: a subscriber knows the exact content of the prefix cache."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, aclosing, closing
from itertools import count
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from hpc_dynamo.kv.events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, decode_events
from hpc_dynamo.simulator.blocks import BlockPool, KvMemory
from hpc_dynamo.simulator.events import KvEventJournal
from hpc_dynamo.simulator.model import SimulatedModel
from hpc_dynamo.simulator.sequence import OutputSequence, SamplingParams, SequenceGroup
from hpc_dynamo.wire import KvEventSubscriber
from tests.integration.simulator.test_process import run
from tests.support.simulator import REPORT_CACHED, Client, Rank

TIMEOUT_S = 60.0
QUIET_S = 0.3  # without any event
BLOCK = 4
Tokens = tuple[int, ...]


class Mirror:
    """Cached prefixes by the engine's hashes, rebuilt from events."""

    def __init__(self) -> None:
        self.prefixes = dict[int | bytes, Tokens]()
        self.ever = dict[int | bytes, Tokens]()  # a parent may be evicted before its child arrives
        self.cleared = 0

    def take(self, events: Iterable[KvEvent]) -> None:
        for event in events:
            match event:
                case BlockStored():
                    self._store(event)
                case BlockRemoved(block_hashes=hashes):
                    for each in hashes:
                        del self.prefixes[each]  # fails for one that was never stored
                case AllBlocksCleared():
                    self.prefixes.clear()
                    self.cleared += 1

    def _store(self, event: BlockStored) -> None:
        assert event.medium == "GPU"
        assert len(event.token_ids) == event.block_size * len(event.block_hashes)
        before: Tokens = ()
        if event.parent_block_hash is not None:
            before = self.ever[event.parent_block_hash]
        for i, name in enumerate(event.block_hashes):
            assert name not in self.prefixes, "stored twice"
            start = i * event.block_size
            before += tuple(event.token_ids[start : start + event.block_size])
            self.prefixes[name] = self.ever[name] = before


def name(digest: bytes) -> int:
    return int.from_bytes(digest[-8:], "big")


class Histories(RuleBasedStateMachine):
    """Prompts are allocated, computed, pulled, decoded and released in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.model = SimulatedModel("m", BLOCK, self.pool, KvMemory(12, 512))
        self.journal, self.mirror = KvEventJournal(BLOCK), Mirror()
        self.model.record_events(self.journal)
        self.answers = list[OutputSequence]()

    @rule(story=st.integers(0, 2), length=st.integers(1, 5 * BLOCK), pulled=st.booleans())
    def begin(self, story: int, length: int, pulled: bool) -> None:
        job = SequenceGroup(
            "x",
            [story + i // 8 for i in range(length)],
            SamplingParams(2 * BLOCK, fixed_output=(1,) * 8),
        )
        hashes = self.model.block_hashes(job.prompt)
        answer = OutputSequence(job, 0, list(job.prompt), hashes, 0.0, BLOCK, 8)
        if not self.model.allocate(answer):
            return
        self.answers.append(answer)
        if pulled:
            self.model.accept_pulled_blocks(answer, answer.blocks[answer.cached_tokens // BLOCK :])

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        answer = data.draw(st.sampled_from(self.answers))
        left = answer.prompt_tokens - answer.computed_tokens
        if left > 0:
            tokens = data.draw(st.integers(1, left))
            self.model.write_full_blocks(answer, tokens)
            self.model.advance_prefill(answer, tokens)
        elif answer.output_length < answer.max_output_tokens:
            answer.tokens.append(7)
            self.model.advance_decodes([answer])

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        answer = data.draw(st.sampled_from(self.answers))
        self.answers.remove(answer)
        self.pool.release(answer.take_blocks())

    @rule()
    def reset(self) -> None:
        assert self.model.reset_cache() == (not self.answers)

    @rule()
    def follow(self) -> None:
        """Apply all events so far. A batch may end after any rule."""
        self.mirror.take(self.journal.drain())
        assert self.mirror.prefixes.keys() == {name(digest) for digest in self.pool.cached_hashes}
        for known, prefix in self.mirror.prefixes.items():
            assert known == name(self.model.block_hashes(list(prefix))[-1])

    def teardown(self) -> None:
        self.follow()


TestHistories = Histories.TestCase


class Followed:
    """A rank that publishes events, and the mirror of its cache from replays."""

    def __init__(self, rank: Rank, follower: KvEventSubscriber) -> None:
        self.rank, self.follower = rank, follower
        self.mirror, self.next = Mirror(), 0

    async def catch_up(self) -> None:
        """Apply missed events by a replay. A response is sent after its events are stored."""
        async with aclosing(self.follower.replay(self.next, TIMEOUT_S)) as missed:
            async for number, payload in missed:
                assert number == self.next
                self.mirror.take(decode_events(payload).events)
                self.next += 1

    async def live_from(self, first: int) -> list[int]:
        """Return the numbers of live batches, up to `first` or a later one."""
        numbers = list[int]()
        async with asyncio.timeout(TIMEOUT_S):
            while not numbers or numbers[-1] < first:
                numbers.append((await self.follower.receive())[0])
        return numbers


Follow = Callable[..., Followed]


@pytest.fixture
async def follow(start: Callable[..., Rank]) -> AsyncIterator[Follow]:
    with TemporaryDirectory() as folder, ExitStack() as stack:
        names = (f"ipc://{folder}/{i}" for i in count())

        def make(*options: str, **config: object) -> Followed:
            live, replay = next(names), next(names)
            follower = stack.enter_context(closing(KvEventSubscriber(live, replay)))
            on = {"enable_kv_cache_events": True, "publisher": "zmq", "topic": ""}
            config = {**on, "endpoint": live, "replay_endpoint": replay, **config}
            return Followed(
                start(
                    "--kv-events-config",
                    msgspec.json.encode(config).decode(),
                    *options,
                    REPORT_CACHED,
                ),
                follower,
            )

        yield make


async def ask(client: Client, followed: Followed, prompt: list[int]) -> tuple[int, int]:
    """Return the cached tokens of a prompt as predicted from events, and as reported."""
    await followed.catch_up()
    known = set(followed.mirror.prefixes.values())
    useful = range(16, len(prompt), 16)  # the last token is always computed
    predicted = 0
    for end in useful:
        if tuple(prompt[:end]) not in known:
            break
        predicted = end
    answer = await client.complete(followed.rank, prompt, max_tokens=1)
    return predicted, answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def prompt(story: int, tokens: int) -> list[int]:
    return [100 + story * 7 + i % 50 for i in range(tokens)]


async def test_prefix_hits_are_predicted_from_events(client: Client, follow: Follow) -> None:
    followed = follow("--num-blocks", "24", "--max-model-len", "384")
    seen = list[tuple[int, int]]()
    for story, tokens in [(0, 200), (1, 100), (0, 210), (2, 150), (1, 130), (0, 100), (3, 40)] * 3:
        seen.append(await ask(client, followed, prompt(story, tokens)))
    assert [predicted for predicted, _ in seen] == [cached for _, cached in seen]
    assert sum(cached for _, cached in seen) > 0, "nothing was ever found"
    await followed.catch_up()
    assert len(followed.mirror.ever) > 24 > len(followed.mirror.prefixes), "nothing was evicted"


async def test_cache_reset_fails_while_block_is_in_use(client: Client, follow: Follow) -> None:
    followed = follow("--stall-after-tokens", "3")
    rank, asked = followed.rank, prompt(0, 100)
    assert await ask(client, followed, asked) == (0, 0)
    assert await ask(client, followed, asked) == (96, 96)
    url = f"{rank.url}/v1/completions"
    body = {"prompt": asked, "max_tokens": 9, "stream": True, "ignore_eos": True}
    async with client.session.post(url, json=body) as stream:
        await stream.content.readany()
        assert await client.post(rank, "/reset_prefix_cache", {}) == (200, {"success": False})
        stream.close()
    await client.until_zero(rank, "kv_cache_usage_perc")
    assert await ask(client, followed, asked) == (96, 96)
    assert await client.post(rank, "/reset_prefix_cache", {}) == (200, {"success": True})
    assert await ask(client, followed, asked) == (0, 0)
    assert followed.mirror.cleared == 1


async def test_live_batches_arrive_in_order(client: Client, follow: Follow) -> None:
    followed = follow()
    receiving = asyncio.create_task(followed.live_from(5))
    more = count()
    while not receiving.done():
        await client.complete(followed.rank, prompt(next(more), 40), max_tokens=1)
    numbers = await receiving
    assert numbers == list(range(numbers[0], numbers[-1] + 1))


async def test_replay_buffer_keeps_buffer_steps(client: Client, follow: Follow) -> None:
    followed = follow(buffer_steps=5)
    for story in range(12):
        await client.complete(followed.rank, prompt(story, 40), max_tokens=1)
    async with aclosing(followed.follower.replay(0, TIMEOUT_S)) as kept:
        assert [number async for number, _ in kept] == [7, 8, 9, 10, 11]


async def test_pulled_blocks_are_stored_on_decode_rank(
    client: Client, prefill: Rank, follow: Follow
) -> None:
    decode_rank, asked = follow("--role", "decode"), prompt(0, 100)
    params = await client.prefilled(prefill, asked)
    await client.complete(decode_rank.rank, asked, max_tokens=1, kv_transfer_params=params)
    await decode_rank.catch_up()
    assert sorted(map(len, decode_rank.mirror.prefixes.values())) == [16, 32, 48, 64, 80, 96]
    assert await ask(client, decode_rank, asked) == (96, 96)


async def test_blocks_of_output_follow_prompt(client: Client, follow: Follow) -> None:
    followed, asked = follow(), prompt(0, 20)
    await client.complete(followed.rank, asked, max_tokens=50, ignore_eos=True)
    await followed.catch_up()
    assert sorted(map(len, followed.mirror.prefixes.values())) == [16, 32, 48, 64]
    assert all(prefix[:16] == tuple(asked[:16]) for prefix in followed.mirror.prefixes.values())


async def test_disabled_events_are_not_published(client: Client, follow: Follow) -> None:
    followed = follow(enable_kv_cache_events=False)
    await client.complete(followed.rank, prompt(0, 40), max_tokens=1)
    async with aclosing(followed.follower.replay(0, QUIET_S)) as kept:
        assert [number async for number, _ in kept] == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "kv-events-config: "),
        ('{"enable": true}', "unknown field `enable`"),
        ('{"enable_kv_cache_events": true, "endpoint": "ipc:///nowhere/x"}', "cannot be published"),
    ],
)
def test_invalid_events_config_is_rejected(config: str, message: str) -> None:
    refused = run("--kv-events-config", config)
    assert refused.returncode != 0
    assert message in refused.stderr
