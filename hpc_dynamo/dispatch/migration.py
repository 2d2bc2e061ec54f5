"""Continues streams whose worker failed on other workers.

Without a failure this costs a copy of the stream (`stream_record`); nothing is parsed.
"""

import logging
from collections import Counter
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import Any

import msgspec

from hpc_dynamo.dispatch.chunk_converter import ChunkConverter, RepeatedEvents
from hpc_dynamo.dispatch.continuation import (
    ContinuationDiffers,
    check_continuable,
    continuation_body,
    cut_at,
    is_greedy,
)
from hpc_dynamo.dispatch.continued_stream import (
    CHUNK_ERRORS,
    ContinuedStream,
    StreamSink,
    send_prepared,
)
from hpc_dynamo.dispatch.dispatcher import MAX_ATTEMPTS, Dispatcher
from hpc_dynamo.dispatch.engine_tokenizer import EngineTokenizer
from hpc_dynamo.dispatch.obstacles import NotContinuable, Obstacle
from hpc_dynamo.dispatch.partial_answer import PartialAnswer, read_answer
from hpc_dynamo.dispatch.request_builder import RequestBuilder
from hpc_dynamo.dispatch.stream_formats import STREAM_FORMATS, StreamFormat
from hpc_dynamo.dispatch.worker_client import EngineRequest, WorkerFailed
from hpc_dynamo.engines import COMPLETIONS
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.json_reader import read_value
from hpc_dynamo.large_bodies import off_loop
from hpc_dynamo.preprocess import BegunOutput, Preprocessor, Tokens

log = logging.getLogger(__name__)


class MigrationOutcome(StrEnum):
    """Result of one migration; a label of a metric."""

    completed = "completed"  # another worker ended the stream
    failed = "failed"  # another worker failed as well
    impossible = "impossible"  # the request or its output so far cannot be continued


class StreamMigrator:
    """Executes the requests of one model, and continues their streams.

    A stream continues at most `limit` times, and not after MAX_ATTEMPTS workers may have failed
    because of it. With `ask_engine` the token ids come from an engine even if there is a
    tokenizer. `outcomes` counts migrations.
    """

    def __init__(
        self, dispatcher: Dispatcher, builder: RequestBuilder, *, limit: int, ask_engine: bool
    ) -> None:
        self._dispatcher, self._builder, self._limit = dispatcher, builder, limit
        self._ask_engine, self._engine = ask_engine, EngineTokenizer(dispatcher)
        self.outcomes = Counter[str]()

    def records(self, request: EngineRequest) -> bool:
        """Return True if the client's stream has to be recorded."""
        streams = "stream" in request.body and request.samples == 1
        return bool(self._limit) and streams and _path(request) in STREAM_FORMATS

    async def run(self, request: EngineRequest, sink: StreamSink) -> None:
        """Execute a request. See Dispatcher.run."""
        try:
            return await self._dispatcher.run(request, sink)
        except WorkerFailed as e:
            if not sink.started or sink.record is None:
                raise
            failure = e
        repeat, deaths = True, failure.deaths
        left = self._limit
        while left and deaths < MAX_ATTEMPTS:
            left -= 1
            try:
                await self._continue(request, sink, failure, repeat=repeat)
            except WorkerFailed as e:
                self.outcomes[MigrationOutcome.failed] += 1
                failure, deaths = e, deaths + e.deaths
            except ContinuationDiffers as e:
                if not repeat:
                    self.outcomes[MigrationOutcome.failed] += 1
                    raise failure from e
                log.warning("%s; it is continued without repeating the last word", e)
                repeat = False
            except NotContinuable as e:
                self.outcomes[MigrationOutcome.impossible] += 1
                log.warning("%s; the stream cannot be continued: %s", failure, e)
                raise failure from e
            except RequestFailed:
                self.outcomes[MigrationOutcome.failed] += 1
                raise
            else:
                self.outcomes[MigrationOutcome.completed] += 1
                return None
        raise failure

    async def _continue(
        self, request: EngineRequest, sink: StreamSink, failure: WorkerFailed, *, repeat: bool
    ) -> None:
        stream_format = STREAM_FORMATS[_path(request)]
        answer = _answer(sink, stream_format)
        # A broken connection is known to the router, and a worker may restart meanwhile.
        exclude = (failure.rank,) if failure.body else ()
        routing = msgspec.structs.replace(request.routing, exclude=exclude)
        request = replace(request, routing=routing)
        if answer.empty:
            log.warning("%s; the request is repeated", failure)
            stream = ContinuedStream(sink, RepeatedEvents(answer, stream_format))
            await self._dispatcher.run(request, stream, max_attempts=1)
        else:
            reading = partial(_chat_body, request, stream_format)
            body = await off_loop(len(request.content), reading)
            cut = cut_at(body, answer, repeat=repeat)
            begun = await self._tokenize(body, answer, cut.kept, request)
            _check_prompt(answer, begun)
            log.warning(
                "%s; the stream continues on another worker after %d tokens",
                failure, len(begun.output),
            )  # fmt: skip
            converter = ChunkConverter(
                answer, cut, stream_format.writer(answer, body),
                prompt_tokens=len(begun.prompt), output_tokens=len(begun.output),
            )  # fmt: skip
            await self._continue_output(request, body, answer, begun, sink, converter)

    async def _continue_output(
        self, request: EngineRequest, body: dict[str, Any], answer: PartialAnswer,
        begun: BegunOutput, sink: StreamSink, converter: ChunkConverter,
    ) -> None:  # fmt: skip
        prompt, output = begun.prompt.ids.tolist(), begun.output.ids.tolist()
        limit = request.context.context_tokens
        continued = continuation_body(body, prompt, output, limit)
        left, usage_wanted = continued["max_tokens"], _wants_usage(body)
        exhausted, greedy = left is not None and left < 1, is_greedy(body)
        # Only an engine knows how many tokens a stop string and the end of the output had.
        counted = answer.usage_sent or not usage_wanted or not greedy
        ended = answer.finished or (answer.text_ended and not greedy)
        if exhausted or (ended and counted):
            finish = "" if answer.finished else "length" if exhausted else "stop"
            await send_prepared(converter.closing(finish=finish, usage=usage_wanted), sink)
            return
        built = await self._built(request, continued)
        await self._dispatcher.run(built, ContinuedStream(sink, converter), max_attempts=1)

    async def _built(self, request: EngineRequest, body: dict[str, Any]) -> EngineRequest:
        content = msgspec.json.encode(body)
        raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
        built = await self._builder.build(
            COMPLETIONS, content, raw, request.context, request.headers
        )
        routing = msgspec.structs.replace(built.routing, exclude=request.routing.exclude)
        return replace(built, routing=routing)

    async def _tokenize(
        self, body: dict[str, Any], answer: PartialAnswer, text: str, request: EngineRequest
    ) -> BegunOutput:
        """Return the token ids of the prompt and of the output so far. Raises NotContinuable."""
        if answer.token_ids and answer.prompt_token_ids:
            return BegunOutput(Tokens.of(answer.prompt_token_ids), Tokens.of(answer.token_ids))
        tokenizer = self._builder.tokenizer
        try:
            if isinstance(tokenizer, Preprocessor) and not self._ask_engine:
                begun = await tokenizer.begun(body, text)
            else:
                routing = msgspec.structs.replace(
                    request.routing, may_disaggregate=False, block_hashes=b"", prompt_tokens=0
                )
                begun = await self._engine.begun(body, text, routing)
        except WorkerFailed:
            raise
        except (RequestFailed, *CHUNK_ERRORS) as e:
            raise NotContinuable(Obstacle.prompt, f"no tokenizer: {e}") from e
        if not isinstance(begun, BegunOutput):
            raise NotContinuable(Obstacle.prompt, begun.reason)
        return begun


def _wants_usage(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _check_prompt(answer: PartialAnswer, begun: BegunOutput) -> None:
    """Compare the tokens of the prompt with the engine's count. Raises NotContinuable."""
    counted = (answer.usage or {}).get("prompt_tokens")
    if counted and counted != len(begun.prompt):
        here = len(begun.prompt)
        what = f"its prompt has {counted} tokens in the engine, but {here} here"
        raise NotContinuable(Obstacle.prompt, what)


def _answer(sink: StreamSink, stream_format: StreamFormat) -> PartialAnswer:
    content = sink.record.content() if sink.record else None
    if content is None:
        raise NotContinuable(Obstacle.length, "it is too long to be kept")
    try:
        return read_answer(content, stream_format.add)
    except CHUNK_ERRORS as e:
        raise NotContinuable(Obstacle.unreadable, f"it has another format: {e!r}") from e


def _chat_body(request: EngineRequest, stream_format: StreamFormat) -> dict[str, Any]:
    """Return the body of a chat or a completion. Raises NotContinuable."""
    try:
        body = stream_format.chat_body(read_value(request.content))
        check_continuable(body)
    except CHUNK_ERRORS as e:
        raise NotContinuable(Obstacle.prompt, f"the request has another format: {e!r}") from e
    return body


def _path(request: EngineRequest) -> str:
    return request.path.partition("?")[0]
