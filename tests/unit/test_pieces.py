"""Large messages of spans: what is counted on the wire, and how they are taken apart."""

from __future__ import annotations

import os

import pytest
from lightningstore.service.rules import pieces, wire
from lightningstore.service.rules.errors import BatchTooLarge, MalformedMessage, PayloadTooLarge
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

MIB = 1 << 20


def make(count: int, **fields: object) -> SpanBatch:
    spans = [
        Span(trace_id=os.urandom(16), span_id=os.urandom(8), name=f"s{i}", **fields)
        for i in range(count)
    ]
    return SpanBatch(rollout_id="ro", attempt_id="at", spans=spans)


def test_pieces_hold_all_spans_in_order() -> None:
    batch = make(4_500)
    cut = pieces.cut(batch.SerializeToString(), 5_000, MIB)
    ranges = list(cut.pieces())
    assert [len(r) for r in ranges] == [2_000, 2_000, 500]
    whole = SpanBatch.FromString(cut.head + b"".join(cut.spans(r) for r in ranges))
    assert whole == batch


def test_a_span_larger_than_a_piece_is_alone() -> None:
    batch = make(3)
    batch.spans[1].name = "x" * (2 * pieces.PIECE_BYTES)
    cut = pieces.cut(batch.SerializeToString(), 10, 4 * pieces.PIECE_BYTES)
    assert list(cut.pieces()) == [range(1), range(1, 2), range(2, 3)]


def test_spans_between_other_fields_are_found() -> None:
    one, two = make(1), make(2)
    head = SpanBatch(schema_url="u").SerializeToString()
    data = one.SerializeToString() + head + two.SerializeToString()
    cut = pieces.cut(data, 3, MIB)
    assert len(cut.begins) == 3
    assert SpanBatch.FromString(cut.head).schema_url == "u"
    assert SpanBatch.FromString(cut.spans(range(3))).spans == [*one.spans, *two.spans]


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x00" * 100_001,
        b"\x0a\x00" * 200_000,
        wire.field(SpanBatch.SEQUENCE_IDS_FIELD_NUMBER, b"\x01" * 2_000_000),
        wire.field(2, b"\x4a\x00" * MIB),
    ],
    ids=["spans", "scopes", "sequence ids", "attributes"],
)
def test_many_small_values_are_refused_before_anything_is_built(data: bytes) -> None:
    with pytest.raises(BatchTooLarge):
        pieces.cut(data, 100_000, 4 * MIB)


def test_resource_is_limited_like_a_span() -> None:
    batch = SpanBatch(resource=Resource(attributes=[KeyValue(key="k" * MIB)]))
    with pytest.raises(PayloadTooLarge, match="resource and scope"):
        pieces.cut(batch.SerializeToString(), 1, MIB)


@pytest.mark.parametrize("data", [b"\x12\x05ab", b"\x12", b"\x12\xff\xff", b"\x13", b"\x09\x00"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        pieces.cut(data, 10, MIB)


def test_export_is_counted_over_all_its_scopes() -> None:
    scope = wire.field(2, make(30).SerializeToString())
    data = wire.field(1, scope * 2) + wire.field(1, scope)
    assert [count for *_, count in pieces.scopes(data, 90, MIB)] == [30, 30, 30]
    with pytest.raises(BatchTooLarge):
        pieces.scopes(data, 89, MIB)


@pytest.mark.parametrize("data", [b"\x0a\x00" * 200_000, wire.field(1, b"\x12\x00" * 200_000)])
def test_export_of_empty_groups_is_refused(data: bytes) -> None:
    with pytest.raises(BatchTooLarge):
        pieces.scopes(data, 100_000, MIB)
