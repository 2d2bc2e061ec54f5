"""Computes the token ids of request bodies with a model's templates and tokenizer."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from hpc_dynamo.chat_templates import ChatRenderer, PromptRejected, UnsupportedPrompt
from hpc_dynamo.chat_templates.renderer_process import PATIENCE_S, RendererProcess
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.preprocess.begun_output import BegunOutput, after_text
from hpc_dynamo.preprocess.completion_prompts import completion_token_ids
from hpc_dynamo.preprocess.encoder import choose_encoder
from hpc_dynamo.preprocess.media_prompt import MediaPrompt
from hpc_dynamo.preprocess.model_folder import ModelFolder
from hpc_dynamo.preprocess.tokens import PromptTooLong, Tokens, UnknownTokens, is_failure

CACHE_BYTES = 64 << 20
# Factor of the time for characters that are not ASCII, at most: millions of merges in one word.
SLOW_CHARS = 20
# Texts of this length take 30 bytes of memory for each character, so few are tokenized at a time.
LARGE_CHARS = 1 << 20
_LARGE = ThreadPoolExecutor(2, thread_name_prefix="tokenize-large")
# Text that tokenizers are known to encode differently.
_PROBE = "It's  12345 na\u00efve\n\n tests</s> of<|im_end|>\n \u4e2d\u6587 \U0001f642 <s>[INST] x"


class Preprocessor:
    """Templates and tokenizer of one model. `model` is its name in errors."""

    def __init__(
        self, folder: ModelFolder, cache_bytes: int = CACHE_BYTES, model: str = ""
    ) -> None:
        tokenizer, serialized = folder.tokenizer()
        self._encoder, self.fallback_reason = choose_encoder(
            tokenizer, serialized, cache_bytes=cache_bytes
        )
        # vLLM 0.32 refuses longer texts in the same way, before it tokenizes them.
        self._longest_token = max(map(len, tokenizer.get_vocab()), default=0)
        renderer = ChatRenderer(
            folder.templates(), folder.special_tokens(), folder.unsupported_renderer()
        )
        self._renderer = RendererProcess(renderer, model)

    @classmethod
    def load(cls, path: Path, cache_bytes: int = CACHE_BYTES, model: str = "") -> Self:
        """Read a model folder. Takes 0.5 s for a vocabulary of 50,000 tokens, 2 s for 150,000.

        Raises NoTokenizer if the folder has no tokenizer.json.
        """
        return cls(ModelFolder.read(path), cache_bytes, model)

    def start(self) -> None:
        """Start the process that renders chats before the first chat."""
        self._renderer.start()

    @property
    def encoder_name(self) -> str:
        """Return the library in use: fastokens, or tokenizers because of `fallback_reason`."""
        return self._encoder.name

    async def chat(self, body: Mapping[str, Any], max_tokens: int = 0) -> Tokens | UnknownTokens:
        """Return the token ids of a body of /v1/chat/completions. See MediaPrompt for its media.

        Texts that may take longer than half a millisecond are tokenized in a thread.
        Raises PromptRejected if the template rejects the messages, and TemplateFailed if it exceeds
        a limit. Raises PromptTooLong if their length in characters already exceeds `max_tokens` of
        the longest token (0: no limit).
        """
        media = await MediaPrompt.of(body)
        text = await self.render(media.body if media else body)
        if isinstance(text, UnknownTokens):
            return text
        special = bool(body.get("add_special_tokens", False))
        encode = partial(self._tokens, special=special, max_tokens=max_tokens)
        if media is None:
            return await encode(text)
        if special:
            return UnknownTokens("special tokens around a prompt with media")
        return await media.tokens(text, encode)

    async def completion(
        self, body: Mapping[str, Any], max_tokens: int = 0
    ) -> list[Tokens] | UnknownTokens:
        """Return the token ids of each prompt of a body of /v1/completions. See `chat`."""
        prompts = body.get("prompt")
        texts = (t for t in prompts if isinstance(t, str)) if isinstance(prompts, list) else ()
        inline = sum(map(len, texts)) <= self._encoder.inline_chars
        encode = partial(self._tokens, max_tokens=max_tokens, inline=inline)
        return await completion_token_ids(body, encode)

    async def begun(self, body: Mapping[str, Any], text: str) -> BegunOutput | UnknownTokens:
        """Return the token ids of the prompt of a chat or a completion, and of the output `text`.

        Raises PromptRejected and TemplateFailed.
        """
        if "messages" in body:
            prompt: Any = await self.render(body, patience_s=None)
            special = bool(body.get("add_special_tokens", False))
        else:
            prompt, special = body.get("prompt"), bool(body.get("add_special_tokens", True))
        if isinstance(prompt, UnknownTokens):
            return prompt
        if isinstance(prompt, str):
            return await asyncio.to_thread(after_text, self._encode, prompt, text, special=special)
        known = await self.completion(body)
        if isinstance(known, UnknownTokens):
            return known
        return BegunOutput(known[0], self.encode(text))

    async def render(
        self, body: Mapping[str, Any], patience_s: float | None = PATIENCE_S
    ) -> str | UnknownTokens:
        """Return the text that the engine tokenizes for a body. See RendererProcess.render."""
        try:
            return await self._renderer.render(body, patience_s)
        except UnsupportedPrompt as e:
            return UnknownTokens(str(e))

    def encode(self, text: str, *, special: bool = False) -> Tokens:
        """Return the ids of a text; `special` adds the tokenizer's BOS, EOS and similar tokens."""
        try:
            return Tokens(self._encoder.encode(text, special=special))
        except UnicodeEncodeError as error:
            raise PromptRejected(f"the prompt is not valid Unicode: {error.reason}") from error
        except BaseException as error:
            if isinstance(error, Exception) or not is_failure(error):
                raise
            raise PromptRejected(f"the tokenizer fails for this prompt: {error}") from error

    def limit_memory(self) -> bool:
        """See Encoder.limit_memory."""
        return self._encoder.limit_memory()

    async def probes(self) -> list[tuple[dict[str, Any], Tokens]]:
        """Return bodies for an engine's /tokenize with the ids that it should return.

        An engine may build its own tokenizer from the folder (transformers 5 does for Llama 2) or
        be started with another one. If its ids differ, route without token ids.
        """
        probes: list[tuple[dict[str, Any], Tokens]] = [
            (
                {"prompt": _PROBE, "add_special_tokens": special},
                self.encode(_PROBE, special=special),
            )
            for special in (False, True)
        ]
        chat = {"messages": [{"role": "user", "content": _PROBE}]}
        with suppress(RequestFailed):
            if isinstance(text := await self.render(chat, patience_s=None), str):
                probes.append((chat, self.encode(text)))
        return probes

    def _encode(self, text: str, special: bool) -> Tokens:
        return self.encode(text, special=special)

    async def _tokens(
        self, text: str, special: bool, max_tokens: int = 0, *, inline: bool = True
    ) -> Tokens:
        """`inline` is False if other texts are encoded right before and after this one."""
        limit = self._encoder.inline_chars // (1 if text.isascii() else SLOW_CHARS)
        if inline and len(text) <= limit:
            return self.encode(text, special=special)
        if 0 < max_tokens * self._longest_token < len(text):
            raise PromptTooLong(max_tokens)
        if len(text) > LARGE_CHARS:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(_LARGE, self._encode, text, special)
        return await asyncio.to_thread(self.encode, text, special=special)
