"""Child process that renders the chats of one model, seen from its parent."""

import asyncio
import logging
import marshal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hpc_dynamo.chat_templates.limits import RenderLimits, RenderOutcome
from hpc_dynamo.chat_templates.refusals import PromptRejected, TemplateFailed, UnsupportedPrompt
from hpc_dynamo.chat_templates.renderer import ChatRenderer
from hpc_dynamo.chat_templates.renderer_child import Answer, RendererChild

# A chat does not wait for another one that has used more CPU time. It is routed without token ids.
PATIENCE_S = 0.25

log = logging.getLogger(__name__)


class RendererProcess:
    """Renders one chat after the other in a child process, which starts with the first chat.

    A rendering that exceeds a limit ends in TemplateFailed, and the next one gets a new process.
    The process ends with this object, or with the parent. Usable from any event loop.
    """

    def __init__(
        self, renderer: ChatRenderer, model: str = "", limits: RenderLimits | None = None
    ) -> None:
        self._renderer, self._model = renderer, model
        self._limits = limits or RenderLimits()
        self._child: RendererChild | None = None

    @property
    def pid(self) -> int | None:
        """Return the process id of the child; None before the first chat."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the child before the first chat."""
        with suppress(OSError):
            self._living_child()

    async def render(self, body: Mapping[str, Any], patience_s: float | None = PATIENCE_S) -> str:
        """Return the text of a chat. See ChatRenderer.render.

        Raises UnsupportedPrompt if another chat has used `patience_s` of CPU time (None: wait), and
        TemplateFailed.
        """
        outcome, text = await self._answer(marshal.dumps(dict(body)), patience_s)
        match outcome:
            case RenderOutcome.text:
                return text
            case RenderOutcome.unsupported:
                raise UnsupportedPrompt(text)
            case RenderOutcome.rejected:
                raise PromptRejected(text)
        model = f"model {self._model}" if self._model else "model"
        message = f"the chat template of the {model} {text} for this request"
        log.warning("%s; check its chat_template.jinja or tokenizer_config.json", message)
        raise TemplateFailed(message, status=400)

    async def _answer(self, content: bytes, patience_s: float | None) -> Answer:
        answer = None
        while answer is None:  # again, if another chat has ended the process
            try:
                child = self._living_child()
            except OSError as e:  # such as too many open files
                log.warning("the process that renders chats cannot start: %s", e)
                return RenderOutcome.unsupported, str(e)
            answer = await _patient(child, child.submit(content), patience_s)
        return answer

    def _living_child(self) -> RendererChild:
        if self._child is None or self._child.ended:
            self._child = RendererChild(self._renderer, self._limits)
        return self._child


async def _patient(
    child: RendererChild, answer: "asyncio.Future[Answer | None]", patience_s: float | None
) -> Answer | None:
    """Await an answer, but not for another chat that has used `patience_s` of CPU time.

    The wait itself may be long on a busy machine, or behind many short chats.
    """
    if patience_s is None:
        return await answer
    loop, timer = asyncio.get_running_loop(), None

    def check() -> None:
        nonlocal timer
        if not answer.done() and child.renders_another(answer, patience_s):
            answer.set_exception(UnsupportedPrompt("another chat is being rendered"))
        timer = loop.call_later(patience_s, check)

    timer = loop.call_later(patience_s, check)
    try:
        return await answer
    finally:
        timer.cancel()
