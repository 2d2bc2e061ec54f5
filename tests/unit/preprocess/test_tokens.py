"""Token ids equal those of the model's tokenizer for any cache content and order."""

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from hpc_dynamo.chat_templates import ChatRenderer
from hpc_dynamo.preprocess import Preprocessor, PromptRejected, Tokens, UnknownTokens
from hpc_dynamo.preprocess.encoder import CachingEncoder, FastokensEncoder
from hpc_dynamo.preprocess.model_folder import ModelFolder
from tests.unit.preprocess.conftest import FAMILIES, FAST, model_folder
from tests.unit.preprocess.templates import TEMPLATES

ATOMS = [
    *(" ", "  ", "\n", "\n\n", " \n \n", "\t", "\r\n", "\r", "\x0b", "\x0c", "\x00", "\x85"),
    *("\u00a0", "\u3000", "\u200b", "\u200d", "\u2028", "\ufeff", "\u0301", "e\u0301", "Å", "ﬁ"),
    *("½", "Ⅷ", "²", "١٢٣", "१२", "1", "123", "1234567", "中文", "日本語", "한국어", "ไทย", "नमस्ते"),
    *("🙂", "👩‍👩‍👧‍👦", "🇩🇪", "\U0010ffff", "\ue000", "▁", "▁▁", "Ġ", "\u017f", "İ", "ẞ"),
    *(
        "'s",
        "'S",
        "'LL",
        "\u2019s",
        "''",
        "I'm",
        "hello",
        "World",
        "camelCase",
        "snake_case",
        "def f(x):",
    ),
    *(
        "<s>",
        "</s>",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>x",
        "<|im_",
        "<left>",
        " <s>left",
        " <normal>",
        "<right>",
    ),
    *(
        "<word>",
        "<normal>",
        "<unk>",
        "<0x0A>",
        "!?",
        "...",
        "=====",
        "{'a': [1, 2]}",
        "http://a.b/c",
    ),
]
TEXTS = st.lists(st.sampled_from(ATOMS) | st.text(max_size=6), max_size=30).map("".join)
KEPT = {"small": 2_000, "large": 1 << 20}  # bytes of cache: one evicts all the time, one never


class Model:
    """Tokenizer of a family as in the engine, and two preprocessors."""

    def __init__(self, folder: Path) -> None:
        self.exact = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.ours = {
            name: Preprocessor.load(folder, cache_bytes=room) for name, room in KEPT.items()
        }
        self.slow = {name: CachingEncoder(self.exact, room) for name, room in KEPT.items()}


@pytest.fixture(scope="module")
def family(folders: dict[str, Path]) -> dict[str, Model]:
    return {name: Model(folder) for name, folder in folders.items()}


def expected(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
    return ids


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("room", KEPT)
@given(shared=TEXTS, tails=st.lists(TEXTS, min_size=1, max_size=4), special=st.booleans())
def test_cached_pieces_give_ids_of_whole_text(
    name: str, room: str, family: dict[str, Model], shared: str, tails: list[str], special: bool
) -> None:
    """Texts share a beginning, and all examples share the cache."""
    model = family[name]
    for text in (shared, *(shared + tail for tail in tails)):
        wanted = expected(model.exact, text, special)
        assert list(model.ours[room].encode(text, special=special).ids) == wanted
        slow = Tokens(model.slow[room].encode(text, special=special))
        assert list(slow.ids) == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_growing_chat_gives_ids_of_whole_text(name: str, family: dict[str, Model]) -> None:
    model, messages = family[name], list[dict[str, str]]()
    chats = ChatRenderer({"default": TEMPLATES["thinking"]}, {"eos_token": "</s>"})
    for turn in range(12):
        messages.append({"role": ("user", "assistant")[turn % 2], "content": f"{turn} é\n" * turn})
        text = chats.render({"messages": messages})
        wanted = expected(model.exact, text, False)
        assert list(model.ours["large"].encode(text).ids) == wanted


def test_fastokens_is_used_for_known_families(family: dict[str, Model]) -> None:
    fast = {
        name for name, model in family.items() if model.ours["large"].encoder_name == "fastokens"
    }
    assert fast >= set(FAST)
    assert all(
        (not model.ours["large"].fallback_reason) == (name in fast)
        for name, model in family.items()
    )


class Counting:
    """Tokenizer that counts the text that it receives."""

    def __init__(self, exact: Tokenizer) -> None:
        self._exact, self.chars = exact, 0

    def encode_batch_fast(self, texts: Sequence[str], **options: Any) -> Any:
        self.chars += sum(map(len, texts))
        return self._exact.encode_batch_fast(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exact, name)


@given(turns=st.lists(TEXTS, min_size=2, max_size=8))
def test_known_text_is_not_tokenized_again(family: dict[str, Model], turns: list[str]) -> None:
    """The tokenizer receives at most the text after the last known special token."""
    counting: Any = Counting(family["metaspace"].exact)
    encoder, seen = CachingEncoder(counting, 1 << 20), ""
    for turn in turns:
        text = f"{seen}<|im_start|>{turn}"
        for unseen in (len(text) - len(seen), 0):
            counting.chars = 0
            encoder.encode(text, special=False)
            assert counting.chars <= unseen
        seen = text


def test_fastokens_caches_segments(folders: dict[str, Path]) -> None:
    preprocess: Any = Preprocessor.load(folders["llama3"])
    history = "".join(f"<|im_start|>turn {i} {'word ' * i}<|im_end|>" for i in range(40))
    preprocess.encode(history)
    missed = preprocess._encoder._fast.segment_cache_stats()["miss_bytes"]
    preprocess.encode(history + "<|im_start|>new")
    assert preprocess._encoder._fast.segment_cache_stats()["miss_bytes"] - missed <= len("new")


def test_encoder_caches_are_bounded(folders: dict[str, Path]) -> None:
    for name in ("llama3", "unigram"):
        encoder: Any = Preprocessor.load(folders[name], cache_bytes=50_000)._encoder
        for turn in range(2000):
            encoder.encode(f"<|im_start|>{turn} some words to remember", special=False)
        if name == "llama3":
            assert encoder._fast.segment_cache_stats()["bytes"] <= 50_000
        else:
            kept = sum(
                sys.getsizeof(text) + sys.getsizeof(ids) for text, ids in encoder._cached.items()
            )
            assert 10_000 < kept <= 50_000


def test_fastokens_is_replaced_before_word_cache_is_large(
    folders: dict[str, Path],
) -> None:
    tokenizer, serialized = ModelFolder.read(folders["llama3"]).tokenizer()
    fast = FastokensEncoder(serialized, tokenizer, cache_bytes=1 << 20, renew_chars=400)
    text = "<|im_start|>" + "words of a chat " * 4
    first = fast.encode(text, special=False)
    assert not fast.limit_memory()
    for _ in range(9):  # cached as a whole: it has no new word
        assert fast.encode(text, special=False) == first
    assert not fast.limit_memory()
    fast.encode("other words, " * 32, special=False)
    assert fast.limit_memory()
    assert not fast.limit_memory()
    assert fast.encode(text, special=False) == first


@pytest.mark.parametrize("name", ["llama3", "metaspace"])
def test_encoder_is_thread_safe(name: str, family: dict[str, Model]) -> None:
    ours = family[name].ours["small"]
    texts = [f"<s>{i % 7} shared words<|im_end|>{i} own words {'x' * i}" for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ours.encode, texts * 5))
    wanted = [expected(family[name].exact, text, False) for text in texts] * 5
    assert [list(tokens.ids) for tokens in found] == wanted


def test_vocabulary_without_some_bytes_falls_back(tmp_path: Path) -> None:
    """fastokens rejects such a text; tokenizers drops the character."""
    folder = model_folder(tmp_path / "m", "")
    exact = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    family = FAMILIES["gpt2"]()[0]
    exact.pre_tokenizer, exact.decoder = family.pre_tokenizer, family.decoder
    exact.save(str(folder / "tokenizer.json"))
    assert list(Preprocessor.load(folder).encode("ab\x04aé").ids) == [2, 0]


async def test_preprocessor_tokenizes_chat_and_completion(
    folders: dict[str, Path], family: dict[str, Model]
) -> None:
    preprocess = Preprocessor.load(folders["llama3"])
    exact = family["llama3"].exact
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "word " * 20_000}]}
    for message in ("Hi", "word " * 20_000):  # inline, and in a thread
        body["messages"][0]["content"] = message
        tokens = await preprocess.chat(body)
        assert isinstance(tokens, Tokens)
        assert list(tokens.ids) == expected(exact, str(await preprocess.render(body)), False)
        assert len(tokens) == len(tokens.ids)
    many = await preprocess.completion({"prompt": ["a b", "<s>"]})
    assert isinstance(many, list)
    assert [list(tokens.ids) for tokens in many] == [
        expected(exact, t, True) for t in ("a b", "<s>")
    ]
    assert await preprocess.completion({"prompt": [1, 2]}) == [Tokens.of([1, 2])]
    assert await preprocess.completion({"prompt": [[1], [2, 3]]}) == [
        Tokens.of([1]),
        Tokens.of([2, 3]),
    ]


async def test_long_text_does_not_block_event_loop(folders: dict[str, Path]) -> None:
    for name in ("llama3", "unigram"):
        preprocess, beats = Preprocessor.load(folders[name]), 0
        work = asyncio.ensure_future(preprocess.completion({"prompt": "long words " * 200_000}))
        while not work.done():
            await asyncio.sleep(0)
            beats += 1
        assert isinstance(await work, list)
        assert beats > 10  # one or two if the loop were blocked


PROMPTS: list[Any] = [None, [], 3, {}, [None], [[1], "x", None], [-1], [1 << 40]]
PROMPTS += [[1, "x"], [[1.5]], [["x"]]]
NOT_PROMPTS: list[dict[str, Any]] = [
    *({"prompt": prompt} for prompt in PROMPTS),
    *({"prompt": "x", name: "y"} for name in ("suffix", "prompt_embeds", "truncate_prompt_tokens")),
]


@pytest.mark.parametrize("body", NOT_PROMPTS, ids=str)
async def test_unsupported_completion_prompt_is_unknown(
    body: dict[str, Any], folders: dict[str, Path]
) -> None:
    assert isinstance(await Preprocessor.load(folders["gpt2"]).completion(body), UnknownTokens)


async def test_half_a_surrogate_pair_is_rejected(folders: dict[str, Path]) -> None:
    for name in ("gpt2", "unigram"):
        with pytest.raises(PromptRejected, match="Unicode"):
            await Preprocessor.load(folders[name]).completion({"prompt": "\ud800"})


async def test_probes_equal_ids_of_requests(folders: dict[str, Path]) -> None:
    preprocess = Preprocessor.load(folders["llama3"])
    (*texts, (chat, ids)) = await preprocess.probes()
    assert [await preprocess.completion(body) for body, _ in texts] == [[ids] for _, ids in texts]
    assert await preprocess.chat(chat) == ids


def test_transformers_is_not_imported() -> None:
    assert "transformers" not in sys.modules
