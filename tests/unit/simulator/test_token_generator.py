"""Tokenizer, word generator and timing profiles."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.errors import ConfigError, InputError
from hpc_dynamo.simulator import tokenizer
from hpc_dynamo.simulator.blocks import hash_blocks
from hpc_dynamo.simulator.token_generator import WORDS, WordGenerator
from hpc_dynamo.timing_model import PROFILES, TimingModel, load_timing

texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts)
def test_decode_inverts_encode(text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.VOCABULARY for token in tokens)


@given(st.lists(st.integers(0, tokenizer.VOCABULARY - 1)))
def test_every_token_id_decodes(tokens: list[int]) -> None:
    assert isinstance(tokenizer.decode(tokens), str)


@given(texts, texts)
def test_equal_prefixes_have_equal_tokens(one: str, other: str) -> None:
    start = "You are a helpful assistant. Answer briefly.\n"
    shared = tokenizer.encode(start)
    assert tokenizer.encode(start + one)[: len(shared)] == shared
    assert tokenizer.encode(f"{start}{other} and")[: len(shared)] == shared


def test_continued_chat_keeps_its_tokens() -> None:
    first = [("system", "Be brief."), ("user", "Hi")]
    more = [*first, ("assistant", "fox sun"), ("user", "Why?")]
    begun = tokenizer.render(first)
    assert tokenizer.render(more)[: len(begun)] == begun


BLOCK = 16


def generated(prompt: list[int], count: int, root: bytes = b"root") -> list[int]:
    """Return the output of a prompt, with the hashes that the model adds for each full block."""
    tokens = list(prompt)
    hashes = hash_blocks(root, tokens, BLOCK)
    generator = WordGenerator(tokens, hashes, root, block_size=BLOCK, mean_tokens=100)
    for i in range(count):
        tokens.append(generator.token(i))
        hashes[:] = hash_blocks(root, tokens, BLOCK)
    return tokens[len(prompt) :]


def test_output_keeps_its_tokens_as_prompt() -> None:
    for last in (tokenizer.ROLE["assistant"], tokenizer.encode("x")[0]):
        tokens = generated([last], 200)
        assert tokenizer.encode(tokenizer.decode(tokens)) == tokens
        assert set(tokenizer.decode(tokens).split()) <= set(WORDS)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_prompt_that_ends_with_begun_output_continues_it(length: int) -> None:
    prompt = tokenizer.encode("word " * 60)[:length]
    output = generated(prompt, 50)
    for cut in (1, 15, 16, 17, 31, 49):
        assert generated(prompt + output[:cut], 50 - cut) == output[cut:]


def test_output_depends_on_all_tokens_and_on_model() -> None:
    prompt = tokenizer.encode("one two three four five six seven eight nine ten " * 3)
    output = generated(prompt, 20)
    assert output == generated(prompt, 20) != generated(prompt, 20, b"other")
    for at in (0, len(prompt) // 2, -1):
        changed = [*prompt]
        changed[at] += 1
        assert generated(changed, 20) != output


def test_outputs_have_mean_length() -> None:
    def length(number: int) -> int:
        tokens, root = [number], b"root"
        generator = WordGenerator(tokens, (), root, block_size=10_001, mean_tokens=50)
        for i in range(10_000):
            tokens.append(generator.token(i))
            if generator.ends(i):
                return i + 1
        return 10_000

    lengths = [length(number) for number in range(400)]
    assert 40 < sum(lengths) / len(lengths) < 60


def test_words_are_one_token_each() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in WORDS)


def test_step_duration_by_content() -> None:
    timing = TimingModel(0.1, 0.001, 1e-6, 0.2, 0.003, 1e-5)
    assert timing.step_s(0, 0, 0, 0) == 0
    assert timing.step_s(100, 5000, 0, 0) == pytest.approx(0.1 + 0.1 + 0.005)
    assert timing.step_s(0, 0, 4, 1000) == pytest.approx(0.2 + 0.012 + 0.01)
    assert timing.step_s(100, 5000, 4, 1000) == pytest.approx(0.2 + 0.105 + 0.022)


def test_timing_profile_by_name_or_file(tmp_path: Path) -> None:
    assert load_timing("h100-8b") is PROFILES["h100-8b"]
    file = tmp_path / "mine.json"
    file.write_text('{"decode_s": 0.5}')
    assert load_timing(str(file)) == TimingModel(decode_s=0.5)
    file.write_text('{"decode_s": "slow"}')
    with pytest.raises(InputError, match=r"mine\.json.*decode_s"):
        load_timing(str(file))
    with pytest.raises(ConfigError, match="cpu-135m"):
        load_timing("cpu-135")


def test_h100_profile_is_faster_than_a100() -> None:
    h100, a100 = (
        PROFILES[name].step_s(2048, 2048 * 1024, 32, 32_000) for name in ("h100-8b", "a100-8b")
    )
    assert 0.05 < h100 < a100 < 1
