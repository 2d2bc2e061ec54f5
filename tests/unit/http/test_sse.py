"""Parser of server-sent events."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hpc_dynamo.http.sse import DONE, DONE_EVENT, EventParser


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)),
    st.sampled_from([b"\n", b"\r\n"]),
    st.data(),
)
def test_parser_yields_complete_events_whatever_the_pieces(
    texts: list[str], newline: bytes, data: st.DataObject
) -> None:
    rows = [b": a comment" + newline + b"event: x" + newline]
    rows += [b"data: " + t.encode() + newline + b"data:2" + newline * 2 for t in texts]
    stream = newline.join(rows)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    events, edges = EventParser(), [0, *cuts, len(stream)]
    received = [e.data for a, b in pairwise(edges) for e in events.feed(stream[a:b]) if e.data]
    assert received == [t.encode() + b"\n2" for t in texts]


def test_parser_yields_an_event_as_soon_as_it_is_complete() -> None:
    events = EventParser()
    assert list(events.feed(b"data: a\n")) == []
    assert list(events.feed(b"\n")) == [(b"a", b"data: a\n\n")]
    assert list(events.feed(b"data: b\r\n\r\nda")) == [(b"b", b"data: b\r\n\r\n")]


def test_parser_yields_comments_without_data_and_skips_blank_lines() -> None:
    events = EventParser()
    assert list(events.feed(b"\n: ping\n\n\ndata: [DONE]\n\n")) == [
        (None, b": ping\n\n"),
        (DONE, DONE_EVENT),
    ]
