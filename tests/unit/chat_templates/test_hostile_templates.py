"""Chat templates that would block a process or fill the memory end at a limit."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from hpc_dynamo.chat_templates import (
    ChatRenderer,
    PromptRejected,
    TemplateFailed,
    UnsupportedPrompt,
)
from hpc_dynamo.chat_templates.limits import RenderLimits
from hpc_dynamo.chat_templates.renderer_process import RendererProcess

SHORT = RenderLimits(cpu_s=0.1)
SMALL = RenderLimits(cpu_s=30, memory_bytes=256 << 20, text_chars=1 << 20)
BODY = {"messages": [{"role": "user", "content": "Hi"}]}
STUCK = {"messages": [{"role": "user", "content": "loop"}]}
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
# Harmless, unless the message asks for more.
TRAP = "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}{{ messages[0].content }}"
PAIRS = "{% for a in range(9) %}{% set n.s = n.s ~ n.s %}{% endfor %}"

CPU, MEMORY, TEXT = "0.1 s of CPU time", "256 MiB of memory", "wrote more than"
OF_CPU = {
    "nested loops": LOOP,
    "power": "{{ 7 ** (7 ** 9) }}",
    "power when compiled": "{% if 3 ** (9 ** 9) %}{% endif %}",
    "macro tree": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "counting in C": "{% set s = 'a' * 9999999 %}{% for a in range(9999) %}{{ s.count('b') }}"
    "{% endfor %}",
    "sorting": "{% set r = range(99999)|list %}{% for a in range(9999) %}"
    "{% set b = r|sort(reverse=true)|unique|list %}{% endfor %}",
    "loop of messages": "{% for a in messages * 9999 %}{% for b in messages * 9999 %}{% endfor %}"
    "{% endfor %}",
}
OF_MEMORY = {
    "multiplied text": "{{ 'x' * 10 ** 12 }}",
    "multiplied list": "{{ [1] * 10 ** 11 }}",
    "padded text": "{{ 'x'.ljust(10 ** 12) }}",
    "filter": "{{ 'x'|center(10 ** 12) }}",
    "format": "{{ '%999999999999d' % 1 }}",
    "lists of lists": "{% set n = namespace(s=[1]) %}{% for a in range(99) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}",
    "doubled text": "{% set n = namespace(s='ab') %}" + PAIRS * 9,
}
OF_TEXT = {
    "long text": "{{ 'x' * 9999999 }}",
    "many pieces": "{% for a in range(99999) %}{{ '0123456789abcdef' }}{% endfor %}",
    "tojson": "{{ messages|tojson(indent=9999999) }}",
}
HOSTILE = [
    *((name, text, CPU) for name, text in OF_CPU.items()),
    *((name, text, MEMORY) for name, text in OF_MEMORY.items()),
    *((name, text, TEXT) for name, text in OF_TEXT.items()),
]


def process(template: str, limits: RenderLimits = SMALL) -> RendererProcess:
    return RendererProcess(ChatRenderer({"default": template}, {}), "demo", limits)


@pytest.mark.parametrize(
    ("template", "reason"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
async def test_hostile_template_ends_at_a_limit(template: str, reason: str) -> None:
    with pytest.raises(TemplateFailed) as caught:
        await process(template, SHORT if reason == CPU else SMALL).render(BODY)
    assert caught.value.status == 400
    assert caught.value.message.startswith("the chat template of the model demo ")
    assert reason in caught.value.message


async def test_endless_recursion_is_rejected() -> None:
    with pytest.raises(PromptRejected, match="recursion"):
        await process("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").render(BODY)


async def test_other_chats_continue() -> None:
    """They do not wait for a hostile chat, and a new process renders the next ones."""
    chats = process(TRAP, SHORT)
    assert await chats.render(BODY) == "Hi"
    stuck = asyncio.create_task(chats.render(STUCK))
    await asyncio.sleep(0)
    with pytest.raises(UnsupportedPrompt, match="another chat"):
        await chats.render(BODY, patience_s=0.01)
    waiting = asyncio.create_task(chats.render(BODY, patience_s=None))
    with pytest.raises(TemplateFailed, match=CPU):
        await stuck
    assert await waiting == "Hi"


async def test_cancelled_chat_leaves_no_answer_to_the_next() -> None:
    chats = process("{{ messages[0].content }}")
    first = asyncio.create_task(chats.render(STUCK))
    await asyncio.sleep(0)
    first.cancel()
    assert await chats.render(BODY, patience_s=None) == "Hi"


async def test_cancelled_chats_do_not_end_the_process() -> None:
    """Clients that disconnected at once made each chat of others wait for a new process."""
    chats = process("{{ messages[0].content }}")
    await chats.render(BODY)
    pid = chats.pid
    for _ in range(20):
        first = asyncio.create_task(chats.render(STUCK))
        await asyncio.sleep(0)
        first.cancel()
        assert await chats.render(BODY, patience_s=None) == "Hi"
    assert chats.pid == pid


async def test_dead_process_is_replaced() -> None:
    chats = process("{{ messages[0].content }}")
    await chats.render(BODY)
    assert chats.pid
    os.kill(chats.pid, signal.SIGKILL)
    with pytest.raises(TemplateFailed, match=r"ended its process \(SIGKILL\)"):
        await chats.render(BODY)
    assert await chats.render(BODY) == "Hi"


async def test_unusual_values_arrive_unchanged() -> None:
    text = "a\ud800\U0001f642\0" + "x" * 300_000
    body = {"messages": [{"role": "user", "content": text}], "documents": [1 << 99, 0.1, None]}
    expected = f"{text}[{1 << 99}, 0.1, None]"
    assert await process("{{ messages[0].content }}{{ documents }}").render(body) == expected


async def test_no_key_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_DYNAMO_TEST_KEY", "secret")
    chats = process("x")
    await chats.render(BODY)
    assert b"secret" not in Path(f"/proc/{chats.pid}/environ").read_bytes()


async def test_chats_sent_ahead_are_answered_in_order() -> None:
    """More than are sent at a time, long ones among them, some of clients that have gone."""
    chats = process("{{ messages[0].content }}")
    texts = [f"{n} " + "x" * (400_000 if n % 20 == 3 else 10) for n in range(100)]
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    tasks = [asyncio.create_task(chats.render(body, patience_s=None)) for body in bodies]
    await asyncio.sleep(0)
    for task in tasks[::7]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, (answer, text) in enumerate(zip(answers, texts, strict=True)):
        assert isinstance(answer, asyncio.CancelledError) if number % 7 == 0 else answer == text


async def test_chats_behind_one_that_ends_the_process_are_rendered() -> None:
    chats = process(TRAP, SHORT)
    stuck = [asyncio.create_task(chats.render(STUCK, patience_s=None)) for _ in range(2)]
    others = [asyncio.create_task(chats.render(BODY, patience_s=None)) for _ in range(40)]
    for task in stuck:
        with pytest.raises(TemplateFailed, match=CPU):
            await task
    assert await asyncio.gather(*others) == ["Hi"] * 40
