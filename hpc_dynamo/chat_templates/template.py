"""Chat templates, rendered as transformers renders them, in Jinja's sandbox.

Source: `apply_chat_template` of transformers 5 (environment, filters, `generation` blocks,
`continue_final_message`), which is what engines call.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hpc_dynamo.chat_templates.content_format import expects_content_parts
from hpc_dynamo.chat_templates.refusals import PromptRejected

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 - the name and the type are Jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with a fast path for the most frequent lookups.

    The fast path returns fields of messages and states of loops as Jinja would. Jinja needs 2
    microseconds to verify that such a lookup is safe, half of the time of rendering a long chat.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj and attribute not in _OF_DICTS:
            return obj[attribute]
        if type(obj) is LoopContext and attribute in _OF_LOOPS:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


_OF_DICTS = frozenset(dir(dict))
_OF_LOOPS = frozenset(("first", "last", "index", "index0", "length", "previtem", "nextitem"))


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Return JSON that is not escaped for HTML, in contrast to Jinja's filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _strftime_now(style: str) -> str:
    return datetime.now().strftime(style)


@lru_cache(1)
def _environment() -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
    return environment


class ChatTemplate:
    """One compiled template. Raises PromptRejected for invalid Jinja."""

    def __init__(self, source: str) -> None:
        try:
            self._template = _environment().from_string(source)
            tree = _environment().parse(source)
            self.expects_content_parts = expects_content_parts(tree)
        except Exception as error:  # such as RecursionError for one that is nested deeply
            raise PromptRejected(f"chat template: {error}") from error
        # Jinja copies the globals for every rendering. A dict is copied five times as fast as its
        # chain of two mappings.
        self._template.globals = dict(self._template.globals)
        self.knows_developer = '"developer"' in source or "'developer'" in source
        self._knows_content = "content" in source

    def render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """Return the text of the prompt.

        Raises PromptRejected with the template's own reason if it rejects the messages.
        """
        try:
            return self._template.render(variables, messages=messages)
        except Exception as error:  # templates can raise any exception
            raise PromptRejected(str(error)) from error

    def render_continued(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """Return the text of the prompt with the last message left open for continuation."""
        last = messages[-1]["content"]
        if not self._knows_content:
            raise PromptRejected("continue_final_message: the chat template has no 'content'")
        text, tagged = _tagged(last)
        rendered = self.render([*messages[:-1], {**messages[-1], "content": tagged}], variables)
        if text.strip() not in rendered or _TAG.strip() not in rendered:
            raise PromptRejected(
                "continue_final_message is set but the final message does not appear in the chat "
                "after applying the chat template"
            )
        end = rendered.rindex(_TAG.strip())
        spaced = rendered.startswith(_TAG, end)  # else the template trimmed the message
        return rendered[:end] if spaced else rendered[:end].rstrip()


def _tagged(content: str | list[dict[str, Any]]) -> tuple[str, str | list[dict[str, Any]]]:
    """Return the final text, and the content with a tag appended to it."""
    if isinstance(content, str):
        return content, content + _TAG
    if not content:
        raise PromptRejected("continue_final_message: the final message has no text")
    *before, part = content
    return part["text"], [*before, {**part, "text": part["text"] + _TAG}]


compile_template = lru_cache(32)(ChatTemplate)
