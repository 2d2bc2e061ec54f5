"""Media that requests name: only data: URLs and the sources of engine.allowed_media."""

import json
from typing import Any

import msgspec
import pytest

from hpc_dynamo.config import Config, Engine
from hpc_dynamo.config.validation.media import check_allowed_media
from hpc_dynamo.dispatch import RequestBuilder, RequestContext
from hpc_dynamo.dispatch.media_sources import MediaSources
from hpc_dynamo.engines import CHAT, MESSAGES, RESPONSES
from hpc_dynamo.errors import ConfigError, RequestFailed

DATA = "data:image/png;base64,iVBORw0KGgo="
LONG = "/9j/" + "A" * 5000  # base64 that is too long for a path

# Sources that no client may name without engine.allowed_media.
ELSEWHERE = [
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:///etc/passwd",
    "/home/user/secret.png",
    "secret.png",
    "./secret.wav",
    "~/secret.png",
    "/dev/shm/x",
    "/9j/secret/png",
    "http://127.0.0.1:8000/metrics",
    "http://169.254.169.254/latest/meta-data/x.png",
    "http://[::1]:8000/x.png",
    "http://[fe80::1]/x.png",
    "http://10.0.0.1/x.png",
    "http://2130706433/x.png",
    "http://localhost/x.png",
    "https://images.example.org/x.png",
    "HTTPS://images.example.org/x.png",
    " http://images.example.org/x.png",
    "ftp://images.example.org/x.png",
    "s3://bucket/x.png",
    "data:/../../../home/user/secret.png",
    "DATA:image/png;base64,AAAA",
    "",
]


def refused(sources: MediaSources, body: dict[str, Any]) -> bool:
    raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in body.items()}
    try:
        sources.check(raw)
    except RequestFailed as e:
        return e.status == 400
    return False


def content(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]}


# Bodies that name a medium, by what the field is called.
BODIES: dict[str, Any] = {
    "image_url": lambda u: content({"type": "image_url", "image_url": {"url": u}}),
    "image_url as text": lambda u: content({"type": "image_url", "image_url": u}),
    "without type": lambda u: content({"image_url": u}),
    "type with url": lambda u: content({"type": "image_url", "url": u}),
    "parts of tokens": lambda u: {"content_parts": [{"type": "video_url", "url": u}]},
    "video_url": lambda u: content({"type": "video_url", "video_url": {"url": u}}),
    "audio_url": lambda u: content({"type": "audio_url", "audio_url": {"url": u}}),
    "image": lambda u: content({"type": "image", "image": u}),
    "path": lambda u: content({"type": "image", "path": u}),
    "anthropic": lambda u: content({"type": "image", "source": {"type": "url", "url": u}}),
    "tool result": lambda u: content(
        {"type": "tool_result", "content": [{"type": "image", "source": {"url": u}}]}
    ),
    "responses": lambda u: {"input": [{"content": [{"type": "input_image", "image_url": u}]}]},
    "file": lambda u: {"input": [{"content": [{"type": "input_file", "file_url": u}]}]},
    "tool output": lambda u: {"input": [{"output": [{"type": "input_image", "image_url": u}]}]},
    "sglang": lambda u: {"text": "a", "image_data": u},
    "sglang list": lambda u: {"text": ["a"], "video_data": [[u]]},
    "sglang object": lambda u: {"text": ["a"], "image_data": [{"url": u, "detail": "low"}]},
    "embeddings": lambda u: {"input": [{"text": "a", "image": u}]},
    "rerank": lambda u: {"documents": [{"content": [{"type": "image_url", "image_url": u}]}]},
    "images": lambda u: {"prompt": "a", "image": [u]},
    "url": lambda u: {"prompt": "a", "url": u},
    "reference": lambda u: {"prompt": "a", "input_reference": u},
}


@pytest.mark.parametrize("source", ELSEWHERE)
def test_media_from_elsewhere_are_refused(source: str) -> None:
    sources = MediaSources()
    assert [name for name, body in BODIES.items() if not refused(sources, body(source))] == []


@pytest.mark.parametrize("source", [DATA, LONG], ids=("data", "base64"))
def test_media_in_the_request_are_accepted(source: str) -> None:
    sources = MediaSources()
    assert [name for name, body in BODIES.items() if refused(sources, body(source))] == []


def test_escaped_names_are_found() -> None:
    text = rb'[{"role":"user","content":[{"\u0069mage_\u0075rl":"\u002fetc/x.png"}]}]'
    with pytest.raises(RequestFailed):
        MediaSources().check({"messages": msgspec.Raw(text)})


@pytest.mark.parametrize(
    ("allowed", "source", "accepted"),
    [
        ("images.example.org", "https://images.example.org/a/b.png?x=1#y", True),
        ("images.example.org", "https://Images.example.org:8443", True),
        ("images.example.org", "https://example.org/x.png", False),
        ("images.example.org", "https://images.example.org.evil.net/x.png", False),
        ("images.example.org", "https://images.example.org@10.0.0.1/x.png", False),
        ("images.example.org", "https://10.0.0.1\\@images.example.org/x.png", False),
        ("images.example.org", "https://10.0.0.1#@images.example.org/x.png", False),
        ("images.example.org", "https://images.example.org\t.evil.net/x.png", False),
        ("images.example.org", "file://images.example.org/etc/passwd", False),
        ("*.example.org", "http://a.b.example.org/x.png", True),
        ("*.example.org", "http://example.org/x.png", False),
        ("*.example.org", "http://evilexample.org/x.png", False),
        ("*", "http://any.host/x.png", True),
        ("*", "/etc/passwd", False),
        ("*", f"http://any.host/{'a' * 70_000}", False),  # the search of 32 MB took 2 s
        ("/data/images", "/data/images/x.png", True),
        ("/data/images/", "file:///data/images/a/x.png", True),
        ("/data/images", "/data/images2/x.png", False),
        ("/data/images", "/data/images/../x.png", False),
        ("/data/images", "file:///data/images/%2e%2e/x.png", False),
        ("/data/images", "data/images/x.png", False),
    ],
)
def test_allowed_sources(allowed: str, source: str, accepted: bool) -> None:
    sources = MediaSources([allowed])
    assert [refused(sources, body(source)) for body in BODIES.values()] == [not accepted] * len(
        BODIES
    )


def test_other_fields_may_have_any_values() -> None:
    link = "https://example.org/x.png"
    schema = {"type": "object", "properties": {"image_url": {"type": "string", "default": link}}}
    body = {
        "messages": [
            {"role": "user", "content": f"see {link}"},
            {"role": "user", "content": [{"type": "text", "text": link}]},
            {"role": "assistant", "audio": {"id": "audio_1"}, "content": None},
            {"role": "assistant", "annotations": [{"type": "url_citation", "url": link}]},
            {"role": "assistant", "content": [{"type": "tool_use", "input": {"image_url": link}}]},
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA"}}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "response_format": {"json_schema": {"schema": schema}},
        "metadata": {"image_url": link},
        "documents": [{"source": link, "title": "x"}],
        "audio": {"voice": "a", "format": "wav"},
        "modalities": ["text", "image"],
    }
    assert not refused(MediaSources(), body)


def test_forms() -> None:
    sources = MediaSources()
    sources.check_form([("prompt", "a /etc/passwd"), ("model", "m"), ("url", DATA), ("file", "")])
    for name in ("url", "url[]", "image", "image[0]", "input_reference", "audio_url"):
        with pytest.raises(RequestFailed, match="allowed_media"):
            sources.check_form([(name, "/etc/passwd")])


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES, "/generate", "/v1/embeddings"])
async def test_requests_of_all_paths_are_checked(path: str) -> None:
    body = {"messages": [{"role": "user", "content": [{"image_url": "https://a.org/x.png"}]}]}
    raw = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in body.items()}
    with pytest.raises(RequestFailed, match=r"add the host a\.org to engine\.allowed_media"):
        await RequestBuilder(Config()).build(path, b"", raw, RequestContext())
    config = Config(engine=Engine(allowed_media=("a.org",)))
    await RequestBuilder(config).build(path, b"", raw, RequestContext())


def test_entries_of_the_setting() -> None:
    check_allowed_media(("a.org", "*.a.org", "*", "localhost", "10.0.0.1", "/data/images/"))
    for wrong in ("", "/", "https://a.org", "a.org/x", "*a.org", "/data/../etc", "a b", "a:80"):
        with pytest.raises(ConfigError, match=r"engine\.allowed_media"):
            check_allowed_media((wrong,))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": DATA}},
        {"type": "image_url", "image_url": None},
        {"image_url": DATA},
        {"type": "text", "text": "a", "video_url": None},
        {"type": "input_audio", "input_audio": {"data": LONG}},
        {"type": "image_embeds", "image_embeds": None},
        {"type": "image_pil", "image_pil": None},
    ],
)
def test_name_of_a_kept_medium_is_refused(part: dict[str, Any]) -> None:
    """vLLM uses the medium that any client has sent under this name."""
    sources = MediaSources(["*"])
    assert not refused(sources, content(part))
    assert refused(sources, content(part | {"uuid": "a" * 64}))


def test_objects_without_media_may_have_an_id() -> None:
    documents = {"documents": [{"uuid": "1", "document_id": "2", "text": "an image_url"}]}
    assert not refused(MediaSources(), documents)
