"""The event loop continues while a large body is checked."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from hpc_dynamo.config import Config, Engine
from hpc_dynamo.dispatch import RequestBuilder, RequestContext
from hpc_dynamo.json_reader import read_fields
from hpc_dynamo.large_bodies import LARGE_BYTES, off_loop
from hpc_dynamo.preprocess import Preprocessor
from hpc_dynamo.preprocess.media_prompt import MediaPrompt
from tests.support.tiny_models import byte_tokenizer


@pytest.mark.parametrize("large", [False, True])
async def test_only_large_work_leaves_the_loop(large: bool) -> None:
    size = LARGE_BYTES if large else LARGE_BYTES - 1
    thread = await off_loop(size, threading.current_thread)
    assert (thread is threading.current_thread()) is not large


async def test_loop_continues_while_a_request_is_built() -> None:
    """Each request of 32 MB blocked the streams of all clients for half a second."""
    builder = RequestBuilder(Config(engine=Engine(name="simulator")))
    text = {"role": "user", "content": "a " * (8 * LARGE_BYTES)}
    content = json.dumps({"messages": [text]}).encode()
    fields = {**read_fields(content)}
    building = builder.build("/v1/chat/completions", content, fields, RequestContext())
    assert await turns_of(asyncio.ensure_future(building)) > 1


async def test_loop_continues_while_many_short_prompts_are_tokenized(tmp_path: Path) -> None:
    """Each was tokenized at once: 10,000 prompts took seconds with some tokenizers."""
    tokenizer = Preprocessor.load(byte_tokenizer(tmp_path / "model"))
    completing = tokenizer.completion({"prompt": ["a" * 2_000] * 100})
    assert await turns_of(asyncio.ensure_future(completing)) > 1


async def test_loop_continues_while_a_text_of_rare_characters_is_tokenized(tmp_path: Path) -> None:
    """A text of 64,000 characters, which usually takes half a millisecond, took 0.1 s."""
    tokenizer = Preprocessor.load(byte_tokenizer(tmp_path / "model"))
    rare = "".join(map(chr, range(0x10000, 0x10000 + 30_000)))
    assert await turns_of(asyncio.ensure_future(tokenizer.completion({"prompt": rare}))) > 1


async def test_loop_continues_while_a_large_image_is_hashed() -> None:
    """16 MB took 60 ms."""
    image = {"type": "image_url", "image_url": {"url": "a" * (32 * LARGE_BYTES)}}
    body = {"messages": [{"role": "user", "content": [image]}]}
    assert await turns_of(asyncio.ensure_future(MediaPrompt.of(body))) > 1


async def turns_of(work: "asyncio.Future[Any]") -> int:
    """Return the turns of the event loop until `work` is done: 1 if it never waits."""
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    work.result()
    return turns
