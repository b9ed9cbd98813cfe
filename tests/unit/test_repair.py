"""Text that is not UTF-8: replaced where it is content, whatever is around it stays."""

from __future__ import annotations

import json

import pytest
from lightningstore.service.rules import text_repair as repair
from lightningstore.service.rules import wire
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


def spoiled(data: bytes) -> bytes:
    return data.replace(b"??", b"\xff\xfe")


def test_every_text_of_a_span_is_repaired_and_the_rest_stays() -> None:
    deep = AnyValue(
        kvlist_value=KeyValueList(values=[KeyValue(key="k??", value=AnyValue(string_value="v??"))])
    )
    span = Span(
        trace_id=b"?" * 16,
        name="n??",
        attributes=[KeyValue(key="a"), KeyValue(key="d", value=deep)],
        events=[Span.Event(name="e??")],
        status=Status(message="m??"),
        end_time_unix_nano=5,
    )
    wanted = SpanBatch.FromString(
        SpanBatch(spans=[span]).SerializeToString().replace(b"?" * 16, b"\xff" * 16)
    )
    data = spoiled(wanted.SerializeToString())
    found = repair.message(data, SpanBatch.DESCRIPTOR)
    assert found.field == "spans[0].name"
    batch = SpanBatch.FromString(found.data)
    assert batch.spans[0].name == "n\ufffd\ufffd"
    assert batch.spans[0].trace_id == b"\xff" * 16
    assert batch.spans[0].end_time_unix_nano == 5
    inner = batch.spans[0].attributes[1].value.kvlist_value.values[0]
    assert (inner.key, inner.value.string_value) == ("k\ufffd\ufffd", "v\ufffd\ufffd")
    assert batch.spans[0].events[0].name == "e\ufffd\ufffd"
    assert batch.spans[0].status.message == "m\ufffd\ufffd"


def test_half_a_surrogate_pair_in_utf_8_is_repaired() -> None:
    data = wire.field(5, "a\ud83d".encode(errors="surrogatepass"))
    found = repair.message(data, Span.DESCRIPTOR)
    assert Span.FromString(found.data).name.startswith("a\ufffd")
    assert found.field == "name"


@pytest.mark.parametrize("data", [b"\x12\x05ab", wire.field(2, b"\x0a" * 3), b""])
def test_what_is_malformed_stays_as_it_is(data: bytes) -> None:
    assert repair.message(data, SpanBatch.DESCRIPTOR) == (data, "")


def test_valid_messages_and_unknown_fields_stay_as_they_are() -> None:
    data = Span(name="ü").SerializeToString() + b"\xfa\x3e\x03\xff\xfe\xfd"
    assert repair.message(data, Span.DESCRIPTOR) == (data, "")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (rb'"a\ud83d"', "a\ufffd"),
        (rb'"\ude00b"', "\ufffdb"),
        (rb'"\ud83d\ud83d\ude00"', "\ufffd\N{GRINNING FACE}"),
        (rb'"\\ud83d"', r"\ud83d"),
        (rb'"\\\ud83d"', "\\\ufffd"),
        (b'"\xff"', "\ufffd"),
        ('"ü😀"'.encode(), "ü😀"),
        (rb'"\u00fc\n"', "ü\n"),
    ],
)
def test_json_text_is_repaired(text: bytes, wanted: str) -> None:
    assert json.loads(repair.json(text)) == wanted
