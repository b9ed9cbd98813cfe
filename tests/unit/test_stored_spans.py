"""Spans whose attributes stay serialised give the triplets and samples of the same spans built by protobuf."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from lightningstore.service.triplets import tokens
from lightningstore.service.triplets.stored import StoredBatch, StoredSpan
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import ArrayValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests import recorded
from tests.traces import TRACES, any_value, extract, fold, load, numbered, span


def stored(spans: list[tuple[int, Span]]) -> list[tuple[int, Span]]:
    """Return the spans as the server reads them from storage."""
    batch = SpanBatch(spans=[one for _, one in spans])
    found = StoredBatch.FromString(batch.SerializeToString()).spans
    return [(number, StoredSpan(one)) for (number, _), one in zip(spans, found, strict=True)]  # type: ignore[misc]


def compare(spans: list[tuple[int, Span]], **options: Any) -> None:
    """Assert that the two kinds of spans have the same triplets and samples."""
    plain, fast = extract(spans, **options), extract(stored(spans), **options)
    assert [t.message for t in fast] == [t.message for t in plain]
    assert fast.unmatched_rewards == plain.unmatched_rewards
    assert fast.warnings == plain.warnings
    assert fold(stored(spans), **options) == fold(spans, **options)


@pytest.mark.parametrize("name", TRACES)
def test_traces(name: str) -> None:
    options = load(name).get("options", {})
    options.pop("skip_without_tokens", None)
    compare(numbered(name), **options)


@pytest.mark.parametrize("stack", recorded.STACKS)
def test_recorded_traces(stack: str) -> None:
    compare(recorded.spans(stack))


_numbers = st.integers(0, 300) | st.integers(0, (1 << 31) - 1)
_odd = _numbers | st.integers(-(1 << 63), (1 << 63) - 1) | st.booleans() | st.text() | st.floats()
_values = st.recursive(
    _odd | st.lists(_numbers),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_ids = st.lists(_numbers, max_size=5) | st.lists(_odd, max_size=5) | _values
_ids |= st.lists(_numbers, max_size=5).map(str) | st.lists(st.lists(_numbers), max_size=2)


@st.composite
def traces(draw: Any) -> list[tuple[int, Span]]:
    """Spans of calls with all kinds of values, in places of token ids too."""
    found = []
    for number in range(1, draw(st.integers(1, 4)) + 1):
        attributes = {
            "gen_ai.operation.name": draw(st.sampled_from(["chat", "tool"])),
            "prompt_token_ids": draw(_ids),
            "response_token_ids": draw(_ids),
            "gen_ai.response.id": draw(st.text(max_size=2)),
            draw(st.sampled_from(["gen_ai.prompt", "llm.p.choices", "x"])): draw(_values),
            draw(st.sampled_from(["gen_ai.completion", "logprobs.content"])): draw(_values),
        }
        made = span(str(number), "chat", "", (number, number + 1), attributes)
        if draw(st.booleans()):
            made.events.add(name="e").attributes.add(
                key="gen_ai.prompt", value=any_value(draw(_values))
            )
        found.append((number, made))
    return found


@given(traces())
def test_made_up_traces(spans: list[tuple[int, Span]]) -> None:
    compare(spans)


def plainly(array: bytes) -> bytes | None:
    """Return the token ids of a serialised ArrayValue, built by protobuf."""
    items = ArrayValue.FromString(array).values
    kinds = {item.WhichOneof("value") for item in items} - {"int_value"}
    ids = [item.int_value for item in items]
    if kinds or any(not 0 <= number < 1 << 31 for number in ids):
        return None
    return tokens.array_of(ids)


def varint(number: int, size: int) -> bytes:
    """Return a number as a varint of at least this size, which may be larger than it need be."""
    out = []
    while number > 0x7F or len(out) + 1 < size:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


_varints = st.builds(
    varint,
    st.sampled_from([0, 1, 2, 3, 4, 8, 10, 18, 24, 130, 1 << 28, 1 << 31]),
    st.integers(1, 2),
)
#: What an array may look like on the wire, and what looks much like it.
_wire = st.lists(
    st.builds(
        lambda number: varint(10, 1) + number,
        st.builds(
            lambda parts: varint(len(b"".join(parts)), 1) + b"".join(parts),
            st.lists(_varints, max_size=5),
        ),
    )
    | st.builds(lambda n: any_value([n]).array_value.SerializeToString(), _numbers)
    | _varints,
    max_size=6,
).map(b"".join)


@given(_wire)
def test_what_only_looks_like_an_array_of_integers_gives_none(array: bytes) -> None:
    try:
        plain = plainly(array)
    except DecodeError:
        return  # such an array is never stored
    # What no exporter writes, such as unknown fields, may count as something else than token ids.
    assert tokens.of_array(array) in (plain, None)


@given(st.lists(_odd, max_size=20))
def test_arrays_are_read_as_protobuf_reads_them(items: list[Any]) -> None:
    value = any_value(items)
    assert tokens.of_array(value.array_value.SerializeToString()) == plainly(
        value.array_value.SerializeToString()
    )
