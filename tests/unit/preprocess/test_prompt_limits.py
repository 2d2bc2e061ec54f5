"""Work for a prompt is limited: long texts are not tokenized, other fields are not read."""

from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from hpc_dynamo.chat_templates import ChatRenderer
from hpc_dynamo.preprocess import PROMPT_FIELDS, Preprocessor, PromptTooLong, Tokens


async def test_text_far_beyond_the_limit_is_not_tokenized(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess, text = Preprocessor.load(folders["llama3"]), "word " * 20_000
    chat = {"messages": [{"role": "user", "content": text}]}
    (tokens,) = cast("list[Tokens]", await preprocess.completion({"prompt": text}))
    assert await preprocess.completion({"prompt": text}, len(tokens)) == [tokens]
    monkeypatch.setattr(
        preprocess._encoder, "encode", lambda text, special: bytes(4 * len(text[:9]))
    )
    for run in (preprocess.completion({"prompt": ["a", text]}, 9), preprocess.chat(chat, 9)):
        with pytest.raises(PromptTooLong, match="more than 9 tokens"):
            await run


class RecordedBody(dict[str, Any]):
    """Body that records the names of the fields that were read."""

    names: ClassVar = set[str]()

    def get(self, key: str, default: Any = None, /) -> Any:
        self.names.add(key)
        return super().get(key, default)


async def test_fields_that_affect_the_prompt_are_known(folders: dict[str, Path]) -> None:
    preprocess = Preprocessor.load(folders["llama3"])
    await preprocess.completion(RecordedBody(prompt="a"))
    # Of a chat, one field is read next to those of its rendering, and those about media.
    media = [{"type": "image_url", "image_url": {"url": "data:,a"}}]
    await preprocess.chat(RecordedBody(messages=[{"role": "user", "content": media}]))
    ChatRenderer({"default": "a"}, {}).render(RecordedBody(messages=[{"role": "user"}]))
    assert RecordedBody.names == PROMPT_FIELDS
