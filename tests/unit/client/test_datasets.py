"""Files of rollouts: lines that keep every digit, files that are whole or can be gone on with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lightningstore.client import ExportedRollout, Rollout, datasets
from lightningstore.client._datasets import otlp_json
from lightningstore.client.datasets import DatasetWriter, decode, encode, read_dataset
from lightningstore.v1.rollout_pb2 import Rollout as Record
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pyarrow import parquet


def exported(n: int, input_json: bytes = b"0", metadata_json: bytes = b"") -> ExportedRollout:
    record = Record(
        rollout_id=f"ro-{n}", input_json=input_json, metadata_json=metadata_json, status=4
    )
    record.start_time.FromNanoseconds(n)
    record.end_time.FromNanoseconds(1_600_000_000_123_456_789)
    record.config.max_attempts = 1
    return ExportedRollout(Rollout(record), [])


def lines(path: Path, count: int) -> list[bytes]:
    with DatasetWriter(path, replace=True) as writer:
        for n in range(count):
            writer.write(exported(n))
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "text",
    [
        b"null",
        b'"\\ud800\\u0000"',
        b"-0",
        b"1e999",
        b"0.10000000000000000000000001",
        b"9" * 6000,
        b'{"b":1,"a":2,"b":3}',
        b"[" * 400 + b"]" * 400,
        '"\u2028\x85ü😀"'.encode(),
        b' { "rollout_id" : "}" } ',
    ],
)
def test_json_of_the_caller_comes_back_to_the_byte(text: bytes) -> None:
    metadata = b'{"m": ' + text + b"}"
    sent = exported(1, text, metadata)
    line = encode(sent)
    assert line.count(b"\n") == 1
    found = decode(line).rollout.message
    assert found.input_json == text.strip(b" ")
    assert found.metadata_json == metadata
    assert encode(decode(line)) == line


def test_line_breaks_between_tokens_are_all_that_goes() -> None:
    found = decode(encode(exported(1, b'\t [1,\r\n "a\\nb",\n2]\r\n ')))
    assert found.rollout.message.input_json == b'[1, "a\\nb",2]'


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "the line must be a JSON object"),
        (b"[]", "the line must be a JSON object"),
        (b"{}", "it has no rollout_id and no status and no input and no attempts"),
        (b"{1:2}", "a key in quotation marks"),
        (b'{"a" 1}', "expected a colon at character 5"),
        (b'{"a":1 "b":2}', "expected a comma at character 7"),
        (b'{"a":', "Expecting value"),
        (b'{"a":1', "expected a comma"),
        (b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "it nests too deep"),
        (b"\xff", "utf-8"),
        (encode(exported(1)).strip() + encode(exported(2)), "text after the object at char"),
        (encode(exported(1)).strip() + b" x\n", "a line must be one object"),
        (b"{} ]", "text after the object at character 3"),
    ],
)
def test_what_is_no_rollout_is_refused_with_a_reason(line: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(line)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("status", "done", "RolloutStatus must be one of .*, not 'done'"),
        ("mode", "odd", "RolloutMode must be one of .*, not 'odd'"),
        ("start_time", "yesterday", "start"),
        ("attempt_count", "many", "attempt_count"),
        ("priority", 1.5, "priority"),
        ("config", {"max_attempts": []}, "max_attempts"),
        ("spans", {}, "spans must be a list of objects"),
        ("spans", [{"spans": [{"traceId": "xyz"}]}], "traceId must be hex digits, not 'xyz'"),
        ("spans", [{"spans": [{"spanId": 5}]}], "spanId must be hex digits, not 5"),
        ("spans", [{"spans": [{"links": [{"traceId": "0"}]}]}], "traceId must be hex digits"),
        ("attempts", [{"attempt_id": 5}], "attempt"),
        ("attempts", [{"status": "odd"}], "AttemptStatus must be one of .*, not 'odd'"),
        ("attempts", 5, "attempts must be a list of objects, not '5'"),
        ("attempts", None, "attempts must be a list of objects, not 'null'"),
        ("attempts", [{}, 1], "attempts must be a list of objects"),
        ("rollout_id", 5, "rollout_id must be a string, not 5"),
        ("status", [1], r"status must be a word, not \[1\]"),
        ("mode", {}, "mode must be a word, not {}"),
        ("config", [1], r"config must be an object, not \[1\]"),
        ("config", {"retry_condition": 5}, "config.retry_condition must be a list, not 5"),
        (
            "config",
            {"retry_condition": ["no"]},
            "config.retry_condition: AttemptStatus must be one of .*, not 'no'",
        ),
        ("spans", [{"protobuf": "//////8="}], "protobuf must be a SpanBatch in base64"),
        ("spans", [{"protobuf": 5}], "protobuf must be a SpanBatch in base64"),
    ],
)
def test_bad_value_is_refused_with_its_name(key: str, value: object, why: str) -> None:
    row = json.loads(encode(exported(1)))
    row[key] = value
    with pytest.raises(ValueError, match=why):
        decode(json.dumps(row).encode())


ODD = (None, True, -1, 1.5, 1e999, 10**30, "", "x", "\ud800", [], [1], [None], {}, {"a": 1}, [{}])


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_no_value_in_any_place_is_more_than_a_value_error(odd: object) -> None:
    row = json.loads(encode(exported(1)))
    row["config"]["retry_condition"] = ["failed"]
    row["attempts"] = [{"attempt_id": "a", "status": "failed", "failure": {"type": "t"}}]
    pair = {"key": "k", "value": {"arrayValue": {"values": [{"intValue": "1"}]}}}
    span = {**USUAL, "attributes": [pair], "events": [{"name": "e"}], "status": {"code": 1}}
    row["spans"] = [{"attemptId": "a", "sequenceIds": ["1"], "resource": {}, "spans": [span]}]
    decode(json.dumps(row).encode())
    for holder, key in list(places(row)):
        kept, holder[key] = holder[key], odd
        try:
            decode(json.dumps(row).encode())
        except ValueError as error:
            assert str(error)
        holder[key] = kept


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield where there is something: what holds it, and its key or index there."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield value, key
        yield from places(value[key])


def test_spans_are_read_as_other_writers_of_otlp_spell_them() -> None:
    told = {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": "AB" * 16,
                                "spanId": "cd" * 8,
                                "kind": "SPAN_KIND_SERVER",
                                "startTimeUnixNano": 5,
                                "endTimeUnixNano": "6",
                                "attributes": [{"key": "n", "value": {"intValue": 7}}],
                                "status": {"code": "STATUS_CODE_ERROR"},
                                "somethingNew": {"a": 1},
                            }
                        ]
                    }
                ]
            },
            {"resource": {"attributes": []}},
        ]
    }
    (batch,) = otlp_json.request_batches(told)
    (span,) = batch.spans
    assert (span.trace_id, span.span_id) == (b"\xab" * 16, b"\xcd" * 8)
    assert (span.kind, span.status.code) == (Span.SPAN_KIND_SERVER, 2)
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (5, 6)
    assert span.attributes[0].value.int_value == 7


USUAL = {
    "traceId": "AB" * 16,
    "spanId": "cd" * 8,
    "parentSpanId": "",
    "name": "ü",
    "kind": 3,
    "flags": 257,
    "startTimeUnixNano": str(2**64 - 1),
    "attributes": [
        {"key": "s", "value": {"stringValue": "v"}},
        {"key": "i", "value": {"intValue": str(-(2**63))}},
        {"key": "d", "value": {"doubleValue": 0.5}},
        {"key": "b", "value": {"boolValue": False}},
        {"key": "a", "value": {"arrayValue": {"values": [{"intValue": "1"}]}}},
    ],
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"kind": "SPAN_KIND_CLIENT", "name": None, "attributes": []},
        {"startTimeUnixNano": 5, "endTimeUnixNano": "7"},
        {"startTimeUnixNano": "x"},
        {"startTimeUnixNano": str(2**64)},
        {"startTimeUnixNano": "--5"},
        {"startTimeUnixNano": "\u0665"},
        {"name": 5},
        {"flags": True},
        {"flags": 2**32},
        {"kind": 2**40},
        {"name": "\ud800"},
        {"attributes": [{"key": "k", "value": {"intValue": 5}}, {"key": "k", "value": {}}]},
        {"attributes": [{"key": "k", "value": {"intValue": str(2**63)}}]},
        {"attributes": [{"key": "k", "value": {"doubleValue": "NaN"}}]},
        {"attributes": [{"key": "k", "value": {"doubleValue": 1}}]},
        {"attributes": [{"key": "k", "value": {"boolValue": "true"}}]},
        {"attributes": [{"key": "k", "value": {"stringValue": 1}}]},
        {"attributes": [{"key": "k", "value": None}, {"key": "k"}, {"value": {"intValue": "1"}}]},
        {"attributes": [{"key": "k", "value": {"bytesValue": "AA=="}, "new": 1}]},
        {"attributes": {"key": "value"}},
        {"attributes": [5]},
        {"events": [{"name": "e"}], "status": {"code": 2}},
    ],
)
def test_quick_reading_is_protobufs_own(change: dict[str, object]) -> None:
    def outcome(reader: Callable[[dict[str, object]], Span]) -> object:
        try:
            return reader({**USUAL, **change}).SerializeToString()
        except ValueError:
            return "refused"

    def slow(told: dict[str, object]) -> Span:
        return otlp_json.read(Span, otlp_json._with_base64(told))

    assert outcome(otlp_json.span_from_json) == outcome(slow)


def test_groups_do_not_show_how_the_store_cut_its_batches() -> None:
    whole = SpanBatch(attempt_id="at-1", sequence_ids=range(1, 5))
    whole.spans.extend(Span(trace_id=b"1" * 16, span_id=bytes([n] * 8)) for n in range(1, 5))
    record = Record(rollout_id="r", attempt_count=1, latest_attempt_id="at-1")
    from lightningstore.client import Attempt
    from lightningstore.client._datasets.batches import slice_of
    from lightningstore.client._datasets.selection import exported as put_together
    from lightningstore.v1.attempt_pb2 import Attempt as AttemptRecord

    for cuts in ([0, 4], [0, 1, 4], [0, 1, 2, 3, 4]):
        parts = [slice_of(whole, a, b) for a, b in pairwise(cuts)]
        attempt = Attempt(AttemptRecord(attempt_id="at-1"))
        found = put_together(Rollout(record), [attempt], parts, None)
        assert found.batches == [whole]
        assert found.attempts[0].span_count == 4


def test_torn_line_is_cut_off_and_what_stands_is_told_backwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lines(tmp_path / "whole.jsonl", 20)
    monkeypatch.setattr(datasets, "_BLOCK", 700)  # lines lie across blocks
    partial = tmp_path / "a.jsonl.partial"
    for kept in (0, 1, 7, 20):
        for torn in (b"", whole[0][:-1], b"x" * 2000):
            partial.write_bytes(b"".join(whole[:kept]) + torn)
            with DatasetWriter(tmp_path / "a.jsonl", resume=True) as writer:
                told = [written.rollout_id for written in writer.written()]
                assert told == [f"ro-{n}" for n in reversed(range(kept))]
                for n in range(kept, 20):
                    writer.write(exported(n))
            assert (tmp_path / "a.jsonl").read_bytes() == b"".join(whole)
            (tmp_path / "a.jsonl").unlink()


def test_file_has_its_name_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(KeyError), DatasetWriter(path) as writer:
        writer.write(exported(1))
        assert not path.exists()
        raise KeyError
    assert not path.exists()
    assert (tmp_path / "a.jsonl.partial").read_bytes() == encode(exported(1))
    with pytest.raises(FileExistsError, match="was interrupted"):
        DatasetWriter(path)
    with DatasetWriter(path, replace=True) as writer:
        writer.write(exported(2))
    assert path.read_bytes() == encode(exported(2))
    with pytest.raises(FileExistsError, match="exists already"):
        DatasetWriter(path, resume=True)
    with pytest.raises(KeyError), DatasetWriter(tmp_path / "b.jsonl"):
        raise KeyError  # nothing is written: nothing stays that could be in the way
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "lightningstore.client._datasets.parquet", raising=False)
    monkeypatch.delattr("lightningstore.client._datasets.parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"lightningstore\[parquet\]"):
        DatasetWriter(tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())
    with DatasetWriter(tmp_path / "a.jsonl") as writer:
        writer.write(exported(1))


def test_parquet_is_cut_into_groups_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightningstore.client._datasets.parquet.GROUP_BYTES", 2000)
    path = tmp_path / "a.parquet"
    with DatasetWriter(path) as writer:
        for n in range(40):
            writer.write(exported(n))
    with parquet.ParquetFile(path) as file:
        assert 5 < file.num_row_groups < 20
    found = [r.rollout.message for r in read_dataset(path)]
    assert found == [exported(n).rollout.message for n in range(40)]
    table = parquet.read_table(path)
    assert table.column("start_time").cast("int64").to_pylist() == list(range(40))
    assert table.column("spans").null_count == table.column("batches").null_count == 40


def test_parquet_of_somebody_else_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"input": ["1"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no exported rollouts: no column attempt_count"):
        list(read_dataset(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(ValueError, match=r"."):
        list(read_dataset(tmp_path / "b.parquet"))


INTS, STRUCT = pa.array([1, 2]), "struct<attempt_id: string"


@pytest.mark.parametrize(
    ("column", "values", "why"),
    [
        ("rollout_id", INTS, "column rollout_id must have the type string"),
        ("metadata", INTS, "column metadata must have the type string"),
        ("attempts", INTS, f"column attempts must have the type list<item: {STRUCT}"),
        (
            "attempts",
            pa.array([[1], []]),
            f"must have the type list<item: {STRUCT}.*, not list<.*>",
        ),
        ("batches", INTS, "column batches must have the type list<item: binary>"),
        (
            "start_time",
            pa.array([1, 2], pa.timestamp("us", tz="UTC")),
            r"must have the type timestamp\[ns, tz=UTC\], not timestamp\[us, tz=UTC\]",
        ),
        ("rollout_id", ["ro-1", None], "row 2: rollout_id: it is null, but every rollout has one"),
        ("status", [None, None], "row 1: status: it is null"),
        ("input", ["1", None], "row 2: input: it is null"),
        ("config", ["{}", None], "row 2: config: it is null"),
        ("config", ["{}", "{"], "row 2: config must be JSON: Expecting"),
        ("config", ["{}", "[" * 100_000], "row 2: config must be JSON"),
        ("config", ["{}", "[1]"], r"row 2: config must be an object, not \[1\]"),
        ("attempts", [[], None], "row 2: attempts: it is null"),
        ("attempts", [[], [None]], "row 2: attempts: one is null"),
        ("batches", [[b"\xff\xff"], None], "row 1: batches must be serialised SpanBatch"),
        ("batches", [[None], None], "row 1: batches must be serialised SpanBatch"),
    ],
)
def test_parquet_column_or_row_that_is_wrong_is_named(
    tmp_path: Path, column: str, values: Any, why: str
) -> None:
    with DatasetWriter(tmp_path / "a.parquet") as writer:
        for n in (1, 2):
            writer.write(exported(n))
    table = parquet.read_table(tmp_path / "a.parquet")
    at = table.schema.get_field_index(column)
    if isinstance(values, list):
        values = pa.array(values, table.schema.field(column).type)
    parquet.write_table(table.set_column(at, column, values), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=why):
        list(read_dataset(tmp_path / "b.parquet"))


def test_parquet_of_a_writer_of_large_texts_is_read(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "a.parquet") as writer:
        writer.write(exported(1))
    table = parquet.read_table(tmp_path / "a.parquet")
    for name, kind in (
        ("input", pa.large_string()),
        ("batches", pa.large_list(pa.large_binary())),
    ):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, table.column(name).cast(kind))
    parquet.write_table(table, tmp_path / "b.parquet")
    (found,) = read_dataset(tmp_path / "b.parquet")
    assert encode(found) == encode(exported(1))


def test_a_span_with_events_and_a_status_comes_back_from_its_json() -> None:
    span = Span(trace_id=b"t" * 16, span_id=b"s" * 8, name="x", start_time_unix_nano=1)
    event = span.events.add(name="exception", time_unix_nano=2)
    event.attributes.add(key="ids").value.array_value.values.add().int_value = 1 << 40
    span.events.add(dropped_attributes_count=3)
    span.status.code, span.status.message = 2, "no"
    for end in (1, 2):
        del span.events[end:]
        assert otlp_json.span_from_json(otlp_json.span_to_json(span)) == span
    span.status.Clear()
    assert otlp_json.span_from_json(otlp_json.span_to_json(span)) == span
    told = {"events": [{"name": "a", "later": 1}], "status": {"code": "STATUS_CODE_ERROR"}}
    assert otlp_json.span_from_json(told).events[0].name == "a"
    assert otlp_json.span_from_json(told).status.code == 2


@pytest.mark.parametrize("levels", [20, 28, 29, 30, 31, 32, 40])
@pytest.mark.parametrize("owner", ["span", "event"])
def test_nesting_is_limited_in_the_same_way_however_a_span_is_read(levels: int, owner: str) -> None:
    value: Any = {"intValue": "1"}
    for _ in range(levels):
        value = {"arrayValue": {"values": [value]}}
    pairs = [{"key": "deep", "value": value}]
    usual = {"attributes": pairs} if owner == "span" else {"events": [{"attributes": pairs}]}
    results = []
    for told in (usual, {**usual, "unknown": 1}):  # what is not usual goes to protobuf's own reader
        try:
            results.append(otlp_json.span_from_json(told, max_levels=63).ByteSize())
        except ValueError as error:
            results.append(str(error).count("too deep"))
    assert results[0] == results[1]
