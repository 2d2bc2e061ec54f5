"""Prompts with media: two that differ in a medium share no prefix beyond it."""

from array import array
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.config import Config, Policy, Router
from hpc_dynamo.dispatch import RequestBuilder, RequestContext
from hpc_dynamo.engines import CHAT
from hpc_dynamo.preprocess import Preprocessor, Tokens, UnknownTokens
from hpc_dynamo.preprocess.media_prompt import MEDIUM_TOKENS
from hpc_dynamo.router import KvState
from tests.support.tiny_models import TEMPLATE, byte_tokenizer

BLOCK = 16
# Qwen2-VL's and LLaVA's forms: media where they stand, and media first.
PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{% if p.type == 'text' %}"
    "{{ p.text }}{% else %}<|vision|>{% endif %}{% endfor %}{% endfor %}<|assistant|>"
)
TEMPLATES = {"text": TEMPLATE, "parts": PARTS}
SYSTEM = {"role": "system", "content": "You describe images in one short sentence."}
RED, BLUE = (f"data:image/png;base64,{letter * 400}" for letter in "rb")


def image(url: str, **more: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def audio(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def chat(*parts: dict[str, Any] | str, **body: Any) -> dict[str, Any]:
    content = [text(part) if isinstance(part, str) else part for part in parts]
    return {"messages": [SYSTEM, {"role": "user", "content": content}], **body}


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Preprocessor:
    folder = byte_tokenizer(tmp_path_factory.mktemp("model") / "m")
    (folder / "chat_template.jinja").write_text(TEMPLATES[request.param])
    return Preprocessor.load(folder)


async def tokens(model: Preprocessor, body: dict[str, Any]) -> Tokens:
    found = await model.chat(body)
    assert isinstance(found, Tokens)
    return found


QUESTION = "What is on it? " * 20
LATER = "Which colour is it? " * 20
PAIRS: list[tuple[str, dict[str, Any], dict[str, Any], bool]] = [
    ("equal", chat(image(RED), QUESTION), chat(image(RED), QUESTION), True),
    ("image", chat(image(RED), QUESTION), chat(image(BLUE), QUESTION), False),
    ("url", chat(image("http://a/1.png")), chat(image("http://a/2.png")), False),
    ("last byte", chat(image(RED + "A"), QUESTION), chat(image(RED + "B"), QUESTION), False),
    ("detail", chat(image(RED), "a"), chat(image(RED, detail="low"), "a"), False),
    ("kind", chat(image(RED)), chat({"type": "video_url", "video_url": {"url": RED}}), False),
    ("audio", chat(audio("UklGRg"), "a"), chat(audio("UklGRh"), "a"), False),
    ("second image", chat(image(RED), image(RED)), chat(image(RED), image(BLUE)), False),
    ("order", chat(image(RED), image(BLUE)), chat(image(BLUE), image(RED)), False),
    ("text first", chat(QUESTION, image(RED)), chat(image(RED), QUESTION), False),
    ("text before", chat(QUESTION, image(RED)), chat(LATER, image(RED)), False),
    ("uuid", chat(image(RED) | {"uuid": "1"}), chat(image(RED) | {"uuid": "2"}), False),
    (
        "options",
        chat(image(RED), mm_processor_kwargs={"max_pixels": 100}),
        chat(image(RED), mm_processor_kwargs={"max_pixels": 200}),
        False,
    ),
    ("no image", chat(image(RED), QUESTION), chat(QUESTION), False),
]


@pytest.mark.parametrize(("one", "two", "same"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS])
async def test_pairs(
    model: Preprocessor, one: dict[str, Any], two: dict[str, Any], same: bool
) -> None:
    first, second = await tokens(model, one), await tokens(model, two)
    assert (first == second) is same
    shared = _shared_prefix(first, second)
    assert shared == len(first) if same else shared == first.text_end
    texts = [await tokens(model, chat(letter)) for letter in "xy"]
    assert first.text_end == _shared_prefix(*texts)


async def test_question_after_an_equal_image_shares_the_image(model: Preprocessor) -> None:
    first = await tokens(model, chat(image(RED), QUESTION))
    second = await tokens(model, chat(image(RED), LATER))
    assert _shared_prefix(first, second) >= first.text_end + MEDIUM_TOKENS
    assert first.least == len(first) - MEDIUM_TOKENS > first.text_end


async def test_text_before_media_has_the_tokens_of_the_engine(model: Preprocessor) -> None:
    plain = await tokens(model, chat(QUESTION))
    media = await tokens(model, chat(QUESTION, image(RED)))
    assert media.ids[: media.text_end] == plain.ids[: media.text_end]
    assert (plain.text_end, plain.placeholders) == (-1, 0)


async def test_media_of_earlier_turns(model: Preprocessor) -> None:
    answer = {"role": "assistant", "content": "It is a red square."}
    first = chat(image(RED), QUESTION)
    again = {"messages": [*first["messages"], answer, *chat(image(BLUE), LATER)["messages"][1:]]}
    other = {"messages": [*first["messages"], answer, *chat(image(RED), LATER)["messages"][1:]]}
    tokens_again, tokens_other = await tokens(model, again), await tokens(model, other)
    shared = _shared_prefix(tokens_again, tokens_other)
    assert len(await tokens(model, first)) <= shared < len(tokens_again) - MEDIUM_TOKENS
    assert tokens_again.placeholders == 2 * MEDIUM_TOKENS


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"file_data": "x"}},
        {"type": "new_kind", "new_kind": "x"},
        {"image_url": {"url": RED}},
        {"type": ["image_url"], "image_url": RED},
    ],
)
async def test_other_parts_are_left_to_the_engine(
    model: Preprocessor, part: dict[str, Any]
) -> None:
    for body in (chat(part), chat(image(RED), part)):
        assert isinstance(await model.chat(body), UnknownTokens)


async def test_template_that_drops_media_gives_no_ids(tmp_path: Path) -> None:
    """Two images would otherwise look alike."""
    folder = byte_tokenizer(tmp_path / "m")
    for template in (
        "{{ messages[0].content }}",
        TEMPLATE * 2,
        TEMPLATE.replace(" }}{% endfor", "|reverse }}{% endfor"),
    ):
        (folder / "chat_template.jinja").write_text(template)
        assert isinstance(await Preprocessor.load(folder).chat(chat(image(RED))), UnknownTokens)


async def test_routing_of_pairs(model: Preprocessor) -> None:
    """A worker that served an image is preferred for it, and for no other image."""
    config = Config(router=Router(policy=Policy.kv, block_tokens=BLOCK))
    builder, state = RequestBuilder(config, model), KvState(config.router)
    state.add_worker(0)

    async def overlap(body: dict[str, Any]) -> int:
        request = await builder.routing_request(CHAT, body, RequestContext())
        return state.overlaps(request.hash_list).get(0, 0)

    sent = await builder.routing_request(CHAT, chat(image(RED), QUESTION), RequestContext())
    state.expect(0, sent.hash_list, sent.confirmable_blocks)
    blocks = len(array("Q", sent.block_hashes))
    assert sent.confirmable_blocks == await overlap(chat(image(BLUE), QUESTION)) < blocks
    assert await overlap(chat(image(RED), QUESTION)) == blocks
    assert await overlap(chat(image(RED), LATER)) >= MEDIUM_TOKENS // BLOCK


async def test_estimated_length_refuses_no_request(model: Preprocessor) -> None:
    """Only the engine knows how many tokens a medium has."""
    config = Config(router=Router(policy=Policy.kv, block_tokens=BLOCK))
    context = RequestContext(max_context_tokens=MEDIUM_TOKENS)
    sent = await RequestBuilder(config, model).build(CHAT, b"", chat(image(RED)), context)
    assert sent.routing.prompt_tokens > MEDIUM_TOKENS


def _shared_prefix(one: Tokens, two: Tokens) -> int:
    pairs = enumerate(zip(one.ids, two.ids, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(two)))
