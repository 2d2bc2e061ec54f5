"""Rendering of chat templates, compared with vLLM's in golden.json (make_golden.py)."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from hpc_dynamo.chat_templates import ChatRenderer, PromptRejected, UnsupportedPrompt
from hpc_dynamo.preprocess.model_folder import ModelFolder
from tests.unit.preprocess import cases
from tests.unit.preprocess.conftest import model_folder
from tests.unit.preprocess.templates import TEMPLATES

GOLDEN: dict[str, str | None] = json.loads(
    (Path(__file__).parent / "golden.json").read_text("utf-8")
)
USER = [{"role": "user", "content": "Hi"}]


def bare(path: Path, template: str, **config: Any) -> Path:
    folder = model_folder(path, template, **config)
    Tokenizer(models.BPE({"<unk>": 0}, [])).save(str(folder / "tokenizer.json"))
    return folder


def renderer(folder: Path) -> ChatRenderer:
    model = ModelFolder.read(folder)
    return ChatRenderer(model.templates(), model.special_tokens(), model.unsupported_renderer())


def rendering(path: Path, template: str) -> ChatRenderer:
    return renderer(bare(path, template))


@pytest.fixture(scope="module")
def by_template(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatRenderer]:
    root = tmp_path_factory.mktemp("templates")
    return {name: rendering(root / name, text) for name, text in TEMPLATES.items()}


def outcome(chats: ChatRenderer, body: dict[str, Any]) -> str | None:
    try:
        return chats.render(body)
    except (PromptRejected, UnsupportedPrompt):
        return None


@pytest.mark.parametrize("case", cases.BODIES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_render_equals_vllm(template: str, case: str, by_template: dict[str, ChatRenderer]) -> None:
    body = copy.deepcopy(cases.BODIES[case])
    assert outcome(by_template[template], body) == GOLDEN[f"{template}/{case}"]
    assert body == cases.BODIES[case]  # the body is forwarded afterwards


def test_golden_file_is_complete() -> None:
    assert list(GOLDEN) == [f"{name}/{case}" for name in TEMPLATES for case in cases.BODIES]


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
FOREIGN: dict[str, dict[str, Any]] = {
    "image": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "uuid": {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "uuid": 1}]}]},
    "no messages": {},
    "empty": {"messages": []},
    "no role": {"messages": [{"content": ""}]},
    "number": {"messages": [{"role": "user", "content": 1}]},
    "no part": {"messages": [{"role": "user", "content": [1]}]},
    "no text": {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
    "custom call": {
        "messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "function": {}}]}]
    },
    "calls": {"messages": [{"role": "assistant", "tool_calls": 3}]},
    "call": {"messages": [{"role": "assistant", "tool_calls": ["f"]}]},
    "no tools": {"messages": USER, "tools": []},
    "no tool": {"messages": USER, "tools": [{"type": "function"}]},
    "own template": {"messages": USER, "chat_template": "{{ messages }}"},
    "smuggled template": {"messages": USER, "chat_template_kwargs": {"chat_template": "x"}},
    "kwargs": {"messages": USER, "chat_template_kwargs": 1},
    "flag": {"messages": USER, "add_generation_prompt": "yes"},
    "truncated": {"messages": USER, "truncate_prompt_tokens": 5},
    "list as type": {"messages": [{"role": "user", "content": [{"type": ["text"], "text": "a"}]}]},
    "object as type": {"messages": [{"role": "user", "content": [{"type": {}, "text": "a"}]}]},
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_render_of_unsupported_prompt_is_unknown(
    body: dict[str, Any], by_template: dict[str, ChatRenderer]
) -> None:
    with pytest.raises(UnsupportedPrompt):
        by_template["thinking"].render(body)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].pop('role') }}",
        "{{ messages[0].__init__() }}",
        "{{ 1 / 0 }}",
        "{{ missing.field.field }}",
        "{% for m in messages %}",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ loop.__class__ }}{{ loop._iterable.append(1) }}{% endfor %}",
        # Jinja 3.1.5 and older allow these.
        "{{ ('{0.__globals__[__builtins__]}'|attr('format'))(strftime_now) }}",
        "{{ ('{0.__class__.__mro__}'|attr('format'))(messages) }}",
    ],
)
def test_failing_or_unsafe_template_is_rejected(template: str, tmp_path: Path) -> None:
    chats = rendering(tmp_path / "m", template)
    with pytest.raises(PromptRejected) as caught:
        chats.render({"messages": [dict(USER[0])]})
    assert (caught.value.status, caught.value.final) == (400, True)


def test_rejection_carries_reason_of_template(by_template: dict[str, ChatRenderer]) -> None:
    with pytest.raises(PromptRejected, match=r"^Roles must alternate user/assistant"):
        by_template["instruct"].render(cases.BODIES["alternation"])


def test_template_reads_fields_named_like_dict_methods(tmp_path: Path) -> None:
    """A field does not hide a method: `message.items()` stays a call."""
    chats = rendering(tmp_path / "m", "{{ tools[0].function.parameters.items() | list }}")
    function = {"name": "f", "parameters": {"items": 1}}
    tools = [{"type": "function", "function": function}]
    assert chats.render({"messages": USER, "tools": tools}) == "[('items', 1)]"


def test_named_templates_are_selected(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    folder = bare(tmp_path / "m", "", chat_template=named)
    (folder / "chat_template.jinja").unlink()
    tools = [{"type": "function", "function": {"name": "f"}}]
    chats = renderer(folder)
    assert chats.render({"messages": USER}) == "plain"
    assert chats.render({"messages": USER, "tools": tools}) == "tools"


@pytest.mark.parametrize("architecture", ["GptOssForCausalLM", "DeepseekV32ForCausalLM"])
def test_model_rendered_in_code_is_unknown(architecture: str, tmp_path: Path) -> None:
    folder = bare(tmp_path / "m", "x")
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(UnsupportedPrompt):
        renderer(folder).render({"messages": USER})


def test_model_without_template_is_unknown(tmp_path: Path) -> None:
    folder = bare(tmp_path / "m", "")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UnsupportedPrompt):
        renderer(folder).render({"messages": USER})


def test_arguments_that_no_parser_reads_are_dropped(tmp_path: Path) -> None:
    """Arguments of 200,000 nested lists got status 500 and a traceback in the log."""
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    own = renderer(bare(tmp_path / "model", template))
    for arguments in ("[" * 200_000, '{"a":' + "[" * 200_000 + "]" * 200_000 + "}"):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [{"role": "assistant", "content": "x", "tool_calls": [call]}]
        assert own.render({"messages": messages}) == "{}"
