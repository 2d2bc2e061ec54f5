"""Forms: all that engines could read in another way are refused."""

import time

import pytest

from hpc_dynamo.dispatch.reserved_fields import check_form
from hpc_dynamo.errors import RequestFailed
from hpc_dynamo.frontend.errors import ApiError
from hpc_dynamo.frontend.multipart import MAX_PARTS, Fields, form_fields
from hpc_dynamo.http import HttpRequest

TYPE = "multipart/form-data; boundary=x"
FILE = 'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav'


def part(head: str, value: str = "v") -> str:
    return f"--x\r\n{head}\r\n\r\n{value}\r\n"


def named(name: str, value: str = "v") -> str:
    return part(f'Content-Disposition: form-data; name="{name}"', value)


def read(body: str, content_type: str = TYPE) -> Fields:
    headers = {"content-type": content_type}
    return form_fields(HttpRequest("POST", "/f", "", headers, body.encode(), ""))


def test_fields_of_a_form() -> None:
    body = named("model", "m") + named("t[]", "a") + named("t[]", "b") + part(FILE, "1\r\n\r\n2")
    expected = [("model", "m"), ("t[]", "a"), ("t[]", "b"), ("file", "")]
    assert read(body + "--x--\r\n") == expected
    assert read("--x--\r\n") == []
    quoted = 'multipart/form-data; boundary="x"'
    assert read(named("a") + "--x--", quoted) == [("a", "v")]
    assert read(part("content-disposition:form-data; name=a") + "--x--") == [("a", "v")]
    other = part("Content-Disposition: form-data; name=\"f\"; filename*=utf-8''%C3%A4")
    assert read(other + "--x--") == [("f", "v")]
    other = part('Content-Disposition: form-data; name="f"; filename*="; filename="')
    assert read(other + "--x--") == [("f", "v")]


@pytest.mark.parametrize(
    "head",
    [
        'Content-Disposition: form-data; x=" name=a"; name="kv_transfer_params"',
        'Content-Disposition: form-data; filename=";name=a"; name="vllm_xargs"',
        'Content-Disposition: form-data; name="a"; name="vllm_xargs"',
        "Content-Disposition: form-data; name*=utf-8''vllm_xargs",
        'Content-Disposition: form-data; name="a"; filename="f"; name*=x',
        'Content-Disposition : form-data; name="a"',
        'Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="b"',
        'Content-Disposition: form-data;\r\n name="a"',
        'Content-Disposition: form-data; name="a\\"b"',
        'Content-Disposition: form-data; name="a"\nx: y',
        "Content-Type: text/plain",
        "",
    ],
)
def test_part_that_engines_may_read_differently_is_refused(head: str) -> None:
    with pytest.raises(ApiError, match="part 1 of the form is not readable"):
        read(part(head) + "--x--")


@pytest.mark.parametrize(
    "body", [named("a"), "--xy\r\n", named("a") + "--x", "x--x--", named("a") * (MAX_PARTS + 1)]
)
def test_form_that_does_not_end_is_refused(body: str) -> None:
    with pytest.raises(ApiError):
        read(body)


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=x; boundary=y",
        "multipart/form-data; boundary*=utf-8''x",
        "multipart/form-data; a=b; boundary=x",
    ],
)
def test_ambiguous_boundary_is_refused(kind: str) -> None:
    with pytest.raises(ApiError, match="content type of a form"):
        read(named("a") + "--x--", kind)


def test_each_repetition_of_a_reserved_field_is_found() -> None:
    hidden = named("vllm_xargs", '{"kv_transfer_params":""}') + named("vllm_xargs", "{}")
    with pytest.raises(RequestFailed):
        check_form(read(hidden + "--x--"))


@pytest.mark.parametrize(
    "text", ["a", "name=a", ";", '"', "\r\n--", "\r\n", "; filename=", "\r\n--x\r\n", "a: b\r\n"]
)
def test_a_large_form_costs_little(text: str) -> None:
    """One form of 100 kB stopped a frontend for minutes; 3 MB took years."""
    began = time.process_time()
    with pytest.raises(ApiError):
        read("--x\r\ncontent-disposition: form-data; name=" + text * (3_000_000 // len(text)))
    assert time.process_time() - began < 5
