"""Child process that renders the chats of one model, seen from its parent."""

import asyncio
import logging
import marshal
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from hpc_dynamo.chat_templates.limits import ANSWER, SIZE, RenderLimits, RenderOutcome
from hpc_dynamo.chat_templates.refusals import PromptRejected, TemplateFailed, UnsupportedPrompt
from hpc_dynamo.chat_templates.renderer import ChatRenderer

# A chat does not wait for another one that has used more CPU time. It is routed without token ids.
PATIENCE_S = 0.25
READ_BYTES = 1 << 20
# Variables that the interpreter and `strftime_now` read. Keys of the run are not among them.
ENVIRONMENT = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ")

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
        self._limits, self._lock = limits or RenderLimits(), asyncio.Lock()
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Return the process id of the child; None before the first chat."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the child before the first chat."""
        with suppress(OSError):
            self._child = self._child or _Child(self._renderer, self._limits)

    async def render(self, body: Mapping[str, Any], patience_s: float | None = PATIENCE_S) -> str:
        """Return the text of a chat. See ChatRenderer.render.

        Raises UnsupportedPrompt if another chat has used `patience_s` of CPU time (None: wait), and
        TemplateFailed.
        """
        content = marshal.dumps(dict(body))
        await self._acquire(patience_s)
        # A client that disconnects must not end the process, whose start takes others' time.
        answering = asyncio.create_task(self._answer(content))
        answering.add_done_callback(lambda _: self._lock.release())
        outcome, text = await asyncio.shield(answering)
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

    async def _acquire(self, patience_s: float | None) -> None:
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    await self._lock.acquire()
                return
            except TimeoutError:
                # The wait itself may be long on a busy machine, or behind many short chats.
                if self._child and self._child.cpu_s() >= (patience_s or 0.0):
                    raise UnsupportedPrompt("another chat is being rendered") from None

    async def _answer(self, content: bytes) -> tuple[RenderOutcome, str]:
        try:
            child = self._child = self._child or _Child(self._renderer, self._limits)
        except OSError as e:  # such as too many open files
            log.warning("the process that renders chats cannot start: %s", e)
            return RenderOutcome.unsupported, str(e)
        try:
            return await child.exchange(content)
        except (EOFError, OSError):
            self._child = None
            return RenderOutcome.over_limit, child.reason(self._limits)
        except asyncio.CancelledError:
            self._child = None  # the next request must not get this answer
            child.end()
            raise


class _Child:
    """The process and its socket."""

    def __init__(self, renderer: ChatRenderer, limits: RenderLimits) -> None:
        parent_end, child_end = socket.socketpair()
        parent_end.setblocking(False)
        arguments = map(str, (limits.cpu_s, limits.memory_bytes, limits.text_chars))
        command = (sys.executable, "-m", "hpc_dynamo.chat_templates", *arguments)
        kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        with child_end:
            process = subprocess.Popen(
                command, stdin=child_end.fileno(), stdout=child_end.fileno(), env=kept
            )
        self._socket, self._process = parent_end, process
        self.pid, self._began_s = process.pid, 0.0
        self._state: bytes | None = marshal.dumps(renderer.state())
        self.end = weakref.finalize(self, _end, process, parent_end)

    async def exchange(self, content: bytes) -> tuple[RenderOutcome, str]:
        """Return the answer to a request. Raises EOFError or OSError if the process ended."""
        loop, records = asyncio.get_running_loop(), [content]
        self._began_s = _cpu_time(self.pid)
        if self._state is not None:
            records, self._state = [self._state, content], None
        sent = b"".join(part for each in records for part in (SIZE.pack(len(each)), each))
        await loop.sock_sendall(self._socket, sent)
        outcome, size = ANSWER.unpack_from(received := await self._read(bytearray(), ANSWER.size))
        text = await self._read(received[ANSWER.size :], size)
        return RenderOutcome(outcome), text.decode("utf-8", "surrogatepass")

    def cpu_s(self) -> float:
        """Return the CPU time that the current chat has used."""
        return _cpu_time(self.pid) - self._began_s

    async def _read(self, received: bytearray, size: int) -> bytearray:
        """Return at least `size` bytes, `received` first."""
        loop = asyncio.get_running_loop()
        while len(received) < size:
            part = await loop.sock_recv(self._socket, READ_BYTES)
            if not part:
                raise EOFError
            received += part
        return received

    def reason(self, limits: RenderLimits) -> str:
        """Return why the process ended, and release its socket."""
        self.end()
        code = self._process.returncode
        if code == -signal.SIGPROF:
            return f"took more than {limits.cpu_s:g} s of CPU time"
        return f"ended its process ({signal.Signals(-code).name if code < 0 else f'exit {code}'})"


def _cpu_time(pid: int) -> float:
    """Return the CPU time of a process in seconds, by the clock of clock_getcpuclockid(3)."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has ended
        return 0.0


def _end(process: subprocess.Popen[bytes], parent_end: socket.socket) -> None:
    parent_end.close()
    process.kill()
    process.wait()
