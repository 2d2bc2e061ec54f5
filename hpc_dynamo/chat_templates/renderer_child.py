"""One child process that renders chats, and the chats that it has.

Chats are sent ahead of the one that is rendered: under load, neither process is woken for each.
Answers come in the order of the chats.
"""

import asyncio
import marshal
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque

from hpc_dynamo.chat_templates.limits import ANSWER, SIZE, RenderLimits, RenderOutcome
from hpc_dynamo.chat_templates.renderer import ChatRenderer

Answer = tuple[RenderOutcome, str]
AHEAD = 32  # chats that are sent before the first of them is answered
AHEAD_BYTES = 1 << 16  # unsent bytes at which no other chat is added
READ_BYTES = 1 << 20
# Variables that the interpreter and `strftime_now` read. Keys of the run are not among them.
ENVIRONMENT = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ")


class RendererChild:
    """The process and its socket. Ends with this object, or with the parent."""

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
        self._socket, self._process, self._limits = parent_end, process, limits
        self.pid, self._began_s, self.ended = process.pid, 0.0, False
        self._waiting = deque[tuple[bytes, asyncio.Future[Answer | None]]]()
        self._sent = deque[asyncio.Future[Answer | None]]()  # the first one is being rendered
        state = marshal.dumps(renderer.state())
        self._unsent, self._received = bytearray(SIZE.pack(len(state)) + state), bytearray()
        self._sender: asyncio.Task[None] | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._end = weakref.finalize(self, _end, process, parent_end)

    def submit(self, content: bytes) -> "asyncio.Future[Answer | None]":
        """Return a future for the answer. None: the process ended because of an earlier chat."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer | None] = loop.create_future()
        if not self._waiting:  # chats of one turn of the loop are sent at once
            loop.call_soon(self._send)
        self._waiting.append((content, answer))
        if self._receiver is None or self._receiver.done():
            self._receiver = loop.create_task(self._receive())
        return answer

    def renders_another(self, answer: "asyncio.Future[Answer | None]", cpu_s: float) -> bool:
        """Return True if another chat than that of `answer` has used so much CPU time."""
        another = bool(self._sent) and self._sent[0] is not answer
        return another and _cpu_time(self.pid) - self._began_s >= cpu_s

    def _send(self) -> None:
        if self._sender is not None:
            return
        while self._waiting and len(self._sent) < AHEAD and len(self._unsent) < AHEAD_BYTES:
            content, answer = self._waiting.popleft()
            if not answer.done():  # its client may have gone
                if not self._sent:
                    self._began_s = _cpu_time(self.pid)
                self._sent.append(answer)
                self._unsent += SIZE.pack(len(content)) + content
        if self._unsent:
            try:
                del self._unsent[: self._socket.send(self._unsent)]
            except BlockingIOError:
                pass
            except OSError:
                return  # the process has ended, which the receiver handles
        if self._unsent:
            self._sender = asyncio.get_running_loop().create_task(self._send_rest())

    async def _send_rest(self) -> None:
        rest, self._unsent = self._unsent, bytearray()
        try:
            await asyncio.get_running_loop().sock_sendall(self._socket, rest)
        except OSError:
            return  # as above
        self._sender = None
        self._send()

    async def _receive(self) -> None:
        """Deliver answers while chats are open."""
        loop = asyncio.get_running_loop()
        try:
            while self._sent or self._waiting:
                part = await loop.sock_recv(self._socket, READ_BYTES)
                if not part:
                    self._fail()
                    return
                self._received += part
                self._deliver()
                self._send()
        except OSError:
            self._fail()
        except asyncio.CancelledError:  # the loop ends; a later one must not get these answers
            self.ended = True
            self._end()
            raise

    def _deliver(self) -> None:
        """Pass on the answers that are complete."""
        at = 0
        while len(self._received) - at >= ANSWER.size:
            outcome, size = ANSWER.unpack_from(self._received, at)
            end = at + ANSWER.size + size
            if len(self._received) < end:
                break
            answer = self._sent.popleft()
            if not answer.done():
                text = self._received[at + ANSWER.size : end].decode("utf-8", "surrogatepass")
                answer.set_result((RenderOutcome(outcome), text))
            self._began_s, at = _cpu_time(self.pid), end
        del self._received[:at]

    def _fail(self) -> None:
        """Answer all chats after the end of the process. The first one was its cause."""
        self.ended = True
        reason = self._reason()
        answers = [*self._sent, *(answer for _, answer in self._waiting)]
        self._sent.clear()
        self._waiting.clear()
        for answer in answers:
            if not answer.done():
                first = answer is answers[0]
                answer.set_result((RenderOutcome.over_limit, reason) if first else None)

    def _reason(self) -> str:
        """Return why the process ended, and release its socket."""
        if self._sender:
            self._sender.cancel()
        self._end()
        code = self._process.returncode
        if code == -signal.SIGPROF:
            return f"took more than {self._limits.cpu_s:g} s of CPU time"
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
