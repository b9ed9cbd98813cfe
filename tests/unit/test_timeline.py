"""Traces as text and as pictures: their content, and that no span can inject anything."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from html.parser import HTMLParser

import pytest
from lightningstore.service.traces import timeline, waterfall
from lightningstore.service.traces.texts import duration_text, printable
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests import traces
from tests.finished import HOSTILE

SVG = "{http://www.w3.org/2000/svg}"


def read(*described: dict[str, object]) -> timeline.Timeline:
    sent = traces.batch(described, "r", "a")
    return timeline.read(zip(sent.sequence_ids, sent.spans, strict=True))


def names(shown: timeline.Timeline) -> list[tuple[int, str]]:
    return [(line.depth, line.name) for line in shown.lines]


def texts(picture: str) -> Iterable[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(picture).iter(f"{SVG}text")]


def test_parents_come_before_their_children_and_siblings_by_start() -> None:
    shown = read(
        {"word": "b", "name": "late", "parent": "a", "at": (5, 6)},
        {"word": "c", "name": "early", "parent": "a", "at": (2, 3)},
        {"word": "d", "name": "inner", "parent": "c", "at": (2, 2.5)},
        {"word": "a", "name": "top", "at": (1, 9)},
        {"word": "e", "name": "orphan", "parent": "gone", "at": (4, 5)},
    )
    assert names(shown) == [
        (0, "top"),
        (1, "early"),
        (2, "inner"),
        (1, "late"),
        (0, timeline.LOST),
        (1, "orphan"),
    ]
    assert shown.duration == 8 * traces.SECOND
    assert [line.start // traces.SECOND for line in shown.lines] == [0, 1, 1, 4, 3, 3]
    assert [line.duration / traces.SECOND for line in shown.lines] == [8, 1, 0.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("attributes", "notes"),
    [
        ({"gen_ai.usage.input_tokens": 1200, "gen_ai.usage.output_tokens": 7}, "1,200 → 7 tokens"),
        ({"gen_ai.usage.prompt_tokens": 5}, "5 → ? tokens"),
        ({"prompt_token_ids": [1, 2, 3], "response_token_ids": [4]}, "3 → 1 tokens"),
        ({"gen_ai.usage.input_tokens": -1}, ""),
        ({"gen_ai.usage.input_tokens": True}, ""),
        ({"agentlightning.reward": 0.25}, "reward 0.25"),
        (
            {
                "agentlightning.reward.0.name": "acc",
                "agentlightning.reward.0.value": 1.0,
                "agentlightning.reward.1.name": "st\x1byle",
                "agentlightning.reward.1.value": -2,
            },
            "reward 1 acc, st\\x1byle -2",
        ),
    ],
)
def test_tokens_and_rewards_are_told(attributes: dict[str, object], notes: str) -> None:
    shown = read({"word": "a", "name": "n", "attributes": attributes})
    assert ", ".join(shown.lines[0].notes) == notes


def test_response_that_two_spans_tell_of_is_counted_once() -> None:
    shown = timeline.read(traces.numbered("agentops"))
    assert [line.notes for line in shown.lines if line.notes][:2] == [["1 → 1 tokens"]] * 2
    assert (shown.total("prompt_tokens"), shown.total("response_tokens")) == (1, 1)
    usage = {"gen_ai.usage.input_tokens": 2}
    nameless = read(
        {"word": "a", "name": "n", "attributes": usage},
        {"word": "b", "name": "n", "attributes": usage},
    )
    assert (nameless.total("prompt_tokens"), nameless.total("response_tokens")) == (4, None)


def test_error_is_the_status_or_else_the_exception() -> None:
    span = Span(trace_id=b"1" * 16, span_id=b"1" * 8)
    assert timeline.read([(1, span)]).lines[0].error == ""
    span.status.code = 2
    assert timeline.read([(1, span)]).lines[0].error == "error"
    event = span.events.add(name="exception")
    event.attributes.add(key="exception.type").value.string_value = "ValueError"
    event.attributes.add(key="exception.message").value.string_value = "no\nway"
    assert timeline.read([(1, span)]).lines[0].error == "ValueError: no\nway"
    shown = timeline.read([(1, span)]).printable()
    assert shown.lines[0].error == r"ValueError: no\nway"
    span.status.message = "x" * 1000
    assert len(timeline.read([(1, span)]).lines[0].error) == timeline.VALUE_LENGTH


def test_exceptions_events_and_links_are_shown_whether_the_span_failed_or_not() -> None:
    span = Span(trace_id=b"1" * 16, span_id=b"1" * 8, start_time_unix_nano=1, end_time_unix_nano=2)
    event = span.events.add(name="exception", time_unix_nano=1 + traces.SECOND)
    stack = (
        "Traceback:\n" + "".join(f"  line {n}\n" for n in range(10_000)) + "ValueError: <b>no</b>"
    )
    for part, text in (("type", "ValueError"), ("message", "<b>no</b>"), ("stacktrace", stack)):
        event.attributes.add(key=f"exception.{part}").value.string_value = text
    span.events.add(name="retry")
    span.links.add(trace_id=b"2" * 16, span_id=b"2" * 8)
    shown = timeline.read([(1, span)])
    (line,) = shown.lines
    assert line.error == ""
    (failure,) = line.exceptions
    assert str(failure) == "ValueError: <b>no</b>"
    assert failure.stack_trace.endswith("ValueError: <b>no</b>")
    assert len(failure.stack_trace) <= timeline.STACK_LENGTH
    assert ("event", "retry") in line.details
    assert ("link", f"trace {'32' * 16} span {'32' * 8}") in line.details
    picture = waterfall.svg("t", shown)
    assert "ValueError: &lt;b&gt;no" in picture
    span.status.code = 2
    span.status.message = "gave up"
    (line,) = timeline.read([(1, span)]).lines
    assert line.error == "gave up"
    assert ("status", "error gave up") in line.details


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0"),
        (999, "999 ns"),
        (1500, "1.5 µs"),
        (20_000_000, "20 ms"),
        (1_234_000_000, "1.23 s"),
        (125 * 10**9, "2 min 5 s"),
        (7300 * 10**9, "2 h 1 min"),
    ],
)
def test_durations_have_the_unit_that_suits_them(nanoseconds: int, text: str) -> None:
    assert duration_text(nanoseconds) == text


def test_nothing_of_a_hostile_span_is_more_than_text() -> None:
    nasty = f"{HOSTILE}<img src=x onerror=alert(1)>&amp;]]>--><!--\x00\ufffe\u202e"
    shown = read({"word": "a", "name": nasty, "attributes": {nasty: nasty}, "at": (1, 2)})
    assert printable(nasty).isprintable()
    assert all(c.isprintable() for line in shown.printable().lines for c in line.name + line.error)
    title = printable(nasty)
    picture = waterfall.svg(title, shown)
    kinds = {element.tag.removeprefix(SVG) for element in ET.fromstring(picture).iter()}
    assert kinds == {"svg", "style", "rect", "text", "tspan", "g", "line", "title"} - {"tspan"}
    assert any(text.startswith(title[:30]) for text in texts(picture))

    seen: list[tuple[str, list[str]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append((tag, [name for name, _ in attrs]))

    page = waterfall.html(title, [("failure", title)], shown)
    Parser().feed(page)
    assert {"script", "img", "iframe", "link", "a"}.isdisjoint({tag for tag, _ in seen})
    assert not [name for _, names in seen for name in names if name.startswith("on")]
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)


def test_bars_lie_where_their_time_is() -> None:
    shown = read(
        {"word": "a", "name": "top", "at": (10, 20)},
        {"word": "b", "name": "half", "parent": "a", "at": (15, 20)},
        {"word": "c", "name": "moment", "parent": "a", "at": (20, 20)},
    )
    picture = ET.fromstring(waterfall.svg("", shown))
    bars = [
        (float(e.get("x", 0)), float(e.get("width", 0)))
        for e in picture.iter(f"{SVG}rect")
        if e.get("rx")
    ]
    left = waterfall.MARGIN + waterfall.NAMES
    half = waterfall.BARS / 2
    assert bars == [(left, waterfall.BARS), (left + half, half), (left + waterfall.BARS, 2.0)]


def test_long_and_deep_names_stay_in_their_column() -> None:
    chain = [
        {"word": str(n), "name": "漢" * 200, "parent": str(n - 1) if n else "", "at": (1, 2)}
        for n in range(3000)
    ]
    shown = read(*chain)
    assert shown.lines[-1].depth == 2999
    picture = waterfall.svg("t" * 1000, shown)
    longest = max(len(text) for text in texts(picture))
    assert longest <= waterfall.WIDTH / waterfall.CELL


def test_trace_without_spans_or_times_is_shown_too() -> None:
    assert timeline.read([]) == timeline.Timeline((), 0)
    ET.fromstring(waterfall.svg("empty", timeline.read([])))
    shown = read({"word": "a", "name": ""}, {"word": "b", "name": "n", "parent": "a"})
    assert names(shown) == [(0, "(no name)"), (1, "n")]
    ET.fromstring(waterfall.svg("no times", shown))
