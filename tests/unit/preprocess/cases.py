"""Chat bodies to render with each template, and the special tokens that templates see."""

from typing import Any

PAD = {"__type": "AddedToken", "content": "<pad>", "special": True}  # as in configuration files
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": PAD}

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {}}},
        "name": "météo",
        "unknown": 1,
    },
    "extra": 3,
}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "météo", "arguments": '{"ville": "Zürich <&>", "n": [1, 2.5]}'},
}


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _answer(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


SYSTEM = {"role": "system", "content": "  You are kind. \n"}
CHAT = [
    SYSTEM,
    _user("Hi"),
    _answer(content=" Hello! \n"),
    _user('你好 👩‍👩‍👧 <|eot|> \'twas "it"\n\n '),
]
TEXTS = [
    {"type": "text", "text": "first"},
    {"type": "text", "text": ""},
    {"type": "text", "text": "x"},
]

BODIES: dict[str, dict[str, Any]] = {
    "plain": {"messages": CHAT},
    "user": {"messages": [_user("Hi")]},
    "open": {"messages": CHAT[1:2], "add_generation_prompt": False},
    "parts": {"messages": [{**SYSTEM, "content": TEXTS}, _user(TEXTS)]},
    "cached": {
        "messages": [_user([{"type": "text", "text": "x", "cache_control": {"type": "e"}}])]
    },
    "strings": {"messages": [_user(["a", "b"])]},
    "null": {"messages": [_user("a"), _answer(content=None), _user("b")]},
    "named": {"messages": [{**_user("a"), "name": "Ann", "other": 1}]},
    "tools": {"messages": CHAT[1:2], "tools": [TOOL]},
    "strict": {
        "messages": CHAT[1:2],
        "tools": [{**TOOL, "function": {"name": "f", "description": "d", "strict": True}}],
    },
    "called": {
        "messages": [
            *CHAT[1:2],
            _answer(content=None, tool_calls=[{**CALL, "index": 0}]),
            {"role": "tool", "tool_call_id": "call_1", "content": TEXTS},
        ],
        "tools": [TOOL],
    },
    "called twice": {
        "messages": [
            *CHAT[1:2],
            _answer(content="", tool_calls=[CALL, CALL]),
            {"role": "tool", "tool_call_id": "call_1", "content": "12 °C"},
            {"role": "tool", "tool_call_id": "call_1", "content": "13 °C"},
            _answer(content="It is cold", tool_calls=[]),
            _user("Thanks"),
        ]
    },
    "bad arguments": {
        "messages": [
            *CHAT[1:2],
            _answer(
                tool_calls=[
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{oops"}}
                ]
            ),
        ]
    },
    "no type": {
        "messages": [
            *CHAT[1:2],
            _answer(tool_calls=[{"id": "c", "function": {"name": "f", "arguments": "{}"}}]),
        ]
    },
    "no object": {
        "messages": [
            *CHAT[1:2],
            _answer(
                tool_calls=[
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[1]"}}
                ]
            ),
        ]
    },
    "reasoned": {
        "messages": [
            *CHAT[1:2],
            _answer(content="4", reasoning_content="2 and 2"),
            *CHAT[1:2],
            _answer(content="5", reasoning="3 and 2"),
            *CHAT[1:2],
            _answer(content="<think>\nlong\n</think>\n\nshort"),
        ],
        "add_generation_prompt": False,
    },
    "effort": {"messages": CHAT, "reasoning_effort": "low"},
    "no effort": {"messages": CHAT, "reasoning_effort": "none"},
    "kwargs": {
        "messages": CHAT,
        "chat_template_kwargs": {
            "enable_thinking": False,
            "bos_token": "<other>",
            "add_generation_prompt": False,
            "reasoning_effort": None,
        },
    },
    "documents": {"messages": CHAT, "documents": [{"title": "T", "text": "words"}]},
    "developer": {"messages": [SYSTEM, {"role": "developer", "content": "Be brief."}, _user("Hi")]},
    "developer first": {"messages": [{"role": "developer", "content": TEXTS}, _user("Hi")]},
    "continued": {
        "messages": [_user("Count"), _answer(content="one, two,")],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "continued parts": {
        "messages": [_user("Count"), _answer(content=[{"type": "text", "text": "one, "}])],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "continued and prompted": {"messages": CHAT, "continue_final_message": True},
    "alternation": {"messages": [_user("a"), _user("b")]},
    "billing": {
        "messages": [
            {**SYSTEM, "content": "x-anthropic-billing-header: cch=1;\nYou are kind."},
            _user("Hi"),
        ]
    },
}
