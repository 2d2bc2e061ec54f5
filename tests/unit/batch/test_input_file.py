"""Input file of a batch: formats of lines, and errors with line numbers."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.batch import input_file
from hpc_dynamo.batch.input_file import MAX_PROBLEMS_SHOWN, BatchInput, read_input
from hpc_dynamo.errors import InputError

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / 'it\'s my "prompts" ü $HOME.jsonl'


def openai(custom_id: str, url: str = TEXT, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def found(requests: BatchInput) -> list[tuple[str, str, dict[str, Any]]]:
    with requests.open() as reader:
        return [(e.custom_id, *_decoded(*reader.read(e))) for e in requests.entries]


def _decoded(path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return path, {name: json.loads(bytes(value)) for name, value in body.items()}


def test_input_mixes_openai_and_plain_lines(file: Path) -> None:
    messages = [{"role": "user", "content": "hällo 世界 🙂"}]
    file.write_text(
        lines(
            openai("one", prompt="a", max_tokens=3),
            openai("two", CHAT, messages=messages),
            {"prompt": "plain", "temperature": 0},
            {"messages": messages, "custom_id": "named"},
            openai("three", "/v1/embeddings", input="x"),
        )
    )
    assert found(read_input(file)) == [
        ("one", TEXT, {"prompt": "a", "max_tokens": 3}),
        ("two", CHAT, {"messages": messages}),
        ("line-3", TEXT, {"prompt": "plain", "temperature": 0}),
        ("named", CHAT, {"messages": messages}),
        ("three", "/v1/embeddings", {"input": "x"}),
    ]


def test_custom_id_keeps_any_characters(file: Path) -> None:
    ids = ["a b", "it's", 'say "x"', "ünï", "世界", "🙂", "tab\there", "new\nline", "a/b\\c", " "]
    file.write_text(lines(*(openai(i, prompt="x") for i in ids)))
    assert [e.custom_id for e in read_input(file).entries] == ids


def test_input_accepts_bom_and_crlf(file: Path) -> None:
    """The file has a byte order mark, carriage returns, blank lines and no final newline."""
    rows = b'{"prompt": "a"}\r\n\r\n  \t\r\n{"prompt": "b"}\r\n{"prompt": "c"}'
    file.write_bytes(b"\xef\xbb\xbf" + rows)
    assert found(read_input(file)) == [
        ("line-1", TEXT, {"prompt": "a"}),
        ("line-4", TEXT, {"prompt": "b"}),
        ("line-5", TEXT, {"prompt": "c"}),
    ]


def test_reader_keeps_values_unchanged(file: Path) -> None:
    """JSON that only Python's parser accepts is valid, because the engines use that parser."""
    bodies = [
        rb'{"prompt": "a", "temperature": NaN}',
        rb'{"prompt": "a", "top_p": 1e400}',
        rb'{"prompt": "\ud83d"}',
        rb'{"prompt": "a", "seed": 123456789012345678901234567890, "x": 1.10}',
    ]
    url = b'{"url": "/v1/rerank", "body": '
    file.write_bytes(b"\n".join([*bodies, *(url + body + b"}" for body in bodies)]))
    requests = read_input(file)
    with requests.open() as reader:
        read = [reader.read(entry) for entry in requests.entries]
    assert [path for path, _ in read] == [TEXT] * 4 + ["/v1/rerank"] * 4
    for (_, body), written in zip(read, bodies * 2, strict=True):
        encoded = msgspec.json.encode(body)
        assert repr(json.loads(encoded)) == repr(json.loads(written))
    assert msgspec.json.encode(read[3][1]) == (
        b'{"prompt":"a","seed":123456789012345678901234567890,"x":1.10}'
    )


def test_fingerprint_is_sha256_of_file(file: Path) -> None:
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert read_input(file).fingerprint == hashlib.sha256(file.read_bytes()).hexdigest()


def complaint(file: Path, content: str | bytes) -> str:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as refused:
        read_input(file)
    assert refused.value.exit_code == 3
    return refused.value.message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON: "),
        (b'{"prompt": "a"} {"prompt": "b"}', "not JSON: "),
        (b'{"prompt": "\xff"}', "not JSON: "),
        (b"\x00", "not JSON: "),
        (b"NaN", "a JSON object is needed, not float"),
        (b'["prompt"]', "a JSON object is needed, not list"),
        (b"null", "a JSON object is needed, not NoneType"),
        (b"{}", 'needs "prompt", "messages", or "url" and "body"'),
        (b'{"custom_id": 7, "prompt": "a"}', "custom_id must be a non-empty string"),
        (b'{"custom_id": "", "prompt": "a"}', "custom_id must be a non-empty string"),
        (b'{"custom_id": null, "prompt": "a"}', "custom_id must be a non-empty string"),
        (b'{"body": {}, "url": "/v1/files"}', "url must be a path for inference such as /v1/"),
        (b'{"body": {}, "url": "/sleep"}', "url must be a path for inference such as /v1/"),
        (b'{"body": {}, "url": "/v1/models"}', "url must be a path for inference such as /v1/"),
        (b'{"body": {}, "url": "http://x/v1/score"}', "url must be a path for inference"),
        (b'{"body": {}, "url": ["/v1/score"]}', "url must be a path for inference"),
        (b'{"body": {}}', "url must be a path for inference such as /v1/chat/completions, "),
        (b'{"prompt": ' + b"[" * 3000 + b"]" * 3000 + b"}", "not JSON: arrays and objects are nes"),
        (rb'{"prompt": "a", "custom_id": "\ud83d"}', "custom_id contains half a surrogate pair"),
        (b'{"url": "/v1/completions"}', "body must be a JSON object"),
        (b'{"url": "/v1/completions", "body": "x"}', "body must be a JSON object"),
        (b'{"url": "/v1/completions", "body": {}, "method": "GET"}', "method must be POST, not"),
        (b'{"prompt": "a", "stream": true}', "stream=true is not supported in a batch"),
    ],
)
def test_invalid_line_is_reported_with_reason(file: Path, line: bytes, reason: str) -> None:
    message = complaint(file, b'{"prompt": "fine"}\n\n' + line + b"\n")
    assert message.startswith("1 lines of the input cannot be used:")
    assert f"{file}:3: {reason}" in message


def test_duplicate_id_is_reported_with_both_lines(file: Path) -> None:
    rows = [openai("a", prompt="1"), openai("b", prompt="2"), openai("a", prompt="3")]
    assert f"{file}:3: custom_id 'a' is also on line 1" in complaint(file, lines(*rows))


def test_generated_id_that_is_taken_is_reported(file: Path) -> None:
    rows = lines(openai("line-2", prompt="1"), {"prompt": "2"})
    assert f"{file}:2: custom_id 'line-2' is also on line 1" in complaint(file, rows)


def test_invalid_lines_are_reported_together_up_to_limit(file: Path) -> None:
    message = complaint(file, "nonsense\n" * (MAX_PROBLEMS_SHOWN + 5))
    assert message.startswith(f"{MAX_PROBLEMS_SHOWN + 5} lines of the input cannot be used:")
    assert f"{file}:1: " in message
    assert f"{file}:{MAX_PROBLEMS_SHOWN}: " in message
    assert f"{file}:{MAX_PROBLEMS_SHOWN + 1}: " not in message
    assert "and 5 more" in message


@pytest.mark.parametrize("content", [b"", b"\n\n \r\n", b"\xef\xbb\xbf"])
def test_input_without_requests_is_rejected(file: Path, content: bytes) -> None:
    assert complaint(file, content) == f"input={file} contains no request"


def test_missing_input_file_is_rejected(file: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_input(file)
    with pytest.raises(InputError, match="not a file"):
        read_input(file.parent)


@pytest.mark.parametrize(
    "changed",
    [
        lines(openai("a"), openai("b"))[5:],
        lines(openai("a"), openai("x")),
        lines(openai("b"), openai("a")),
        lines(openai("a")) + "{" * 60,
        lines(openai("a")),
    ],
    ids=["shorter", "other id", "swapped", "not JSON", "truncated"],
)
def test_line_changed_in_place_is_refused(file: Path, changed: str) -> None:
    """An editor or a script writes to the file while the batch runs."""
    file.write_text(lines(openai("a"), openai("b")))
    requests = read_input(file)
    with requests.open() as reader:
        file.write_text(changed)
        with pytest.raises(InputError) as refused:
            reader.read(requests.entries[1])
    line = f"{file}:2: this line was changed while the batch runs: "
    if not changed.startswith("{"):
        line = f"{file}:"  # lines have moved
    assert refused.value.message.startswith(line)
    assert "run the same command again" in refused.value.hint


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3),
    max_leaves=6,
)
bodies = st.dictionaries(st.text(), json_values, max_size=4).filter(lambda b: not b.get("stream"))


@given(
    rows=st.lists(st.tuples(st.text(min_size=1), bodies), min_size=1, unique_by=lambda row: row[0]),
    newline=st.sampled_from(["\n", "\r\n", "\n\n"]),
    ascii_only=st.booleans(),
    bom=st.booleans(),
)
def test_reader_returns_every_body(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, dict[str, Any]]],
    newline: str,
    ascii_only: bool,
    bom: bool,
) -> None:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [json.dumps(openai(i) | {"body": b}, ensure_ascii=ascii_only) for i, b in rows]
    file.write_bytes(b"\xef\xbb\xbf" * bom + newline.join(texts).encode())
    assert found(read_input(file)) == [(i, TEXT, b) for i, b in rows]


def test_file_without_newlines_is_not_read_as_a_whole(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse file may have terabytes."""
    monkeypatch.setattr(input_file, "MAX_LINE_BYTES", 1 << 20)
    with file.open("wb") as opened:
        opened.write(b'{"prompt": "a"}\n')
        opened.truncate(1 << 40)
    with pytest.raises(InputError, match=":2: this line has more than 1 MiB"):
        read_input(file)
