"""Process that renders chats: `python -m hpc_dynamo.chat_templates CPU_S MEMORY_BYTES CHARS`.

Standard input and output are one socket of the parent. The first record is the state of a
ChatRenderer, each later one a request. The process ends with the connection. At the limit of CPU
time the kernel ends it with SIGPROF, also in the middle of a C function.
"""

import marshal
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

from hpc_dynamo.chat_templates.limits import ANSWER, SIZE, RenderLimits, RenderOutcome
from hpc_dynamo.chat_templates.refusals import PromptRejected, UnsupportedPrompt
from hpc_dynamo.chat_templates.renderer import ChatRenderer

MIB = 1 << 20


def serve(source: BinaryIO, sink: BinaryIO, limits: RenderLimits) -> None:
    """Answer all requests of a connection."""
    records = _records(source)
    renderer: ChatRenderer | None = None
    for record in records:
        if renderer is None:
            renderer = ChatRenderer.from_state(marshal.loads(record))
            continue
        outcome, text = _render_limited(renderer, record, limits)
        content = text.encode("utf-8", "surrogatepass")
        sink.write(ANSWER.pack(outcome, len(content)) + content)
        sink.flush()


def _records(source: BinaryIO) -> Iterator[bytes]:
    while len(header := source.read(SIZE.size)) == SIZE.size:
        (size,) = SIZE.unpack(header)
        yield source.read(size)


def _render_limited(
    renderer: ChatRenderer, record: bytes, limits: RenderLimits
) -> tuple[RenderOutcome, str]:
    memory = limits.memory_for(len(record))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or memory < hard:
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)
    try:
        outcome, text = _render(renderer, marshal.loads(record))
    except MemoryError:
        return RenderOutcome.over_limit, f"needs more than {memory // MIB} MiB of memory"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if len(text) > (allowed := limits.chars_for(len(record))):
        return RenderOutcome.over_limit, f"wrote more than {allowed:,} characters"
    return outcome, text


def _render(renderer: ChatRenderer, body: dict[str, Any]) -> tuple[RenderOutcome, str]:
    try:
        return RenderOutcome.text, renderer.render(body)
    except UnsupportedPrompt as e:
        return RenderOutcome.unsupported, str(e)
    except PromptRejected as e:
        if isinstance(e.__cause__, MemoryError):
            raise e.__cause__ from None
        return RenderOutcome.rejected, e.message


def main() -> int:
    """Run the process with the arguments of the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    cpu_s, memory, chars = sys.argv[1:]
    limits = RenderLimits(float(cpu_s), int(memory), int(chars))
    serve(sys.stdin.buffer, sys.stdout.buffer, limits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
