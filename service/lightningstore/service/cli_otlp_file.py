"""Spans out of a file of the OpenTelemetry collector's file exporter: one OTLP request in JSON a line.

Spans that name their attempt go there by OTLP's own call. The others belong nowhere, unless a rollout is made
of each of their traces: then the file is read twice, first for what a rollout must know of its trace.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.client import LightningStore, _otlp_json
from lightningstore.client._datasets import like
from lightningstore.client._endpoint import endpoint
from lightningstore.client._errors import from_rpc_error
from lightningstore.service.cli_datasets import DEADLINE
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_FAILED, ATTEMPT_STATUS_SUCCEEDED
from lightningstore.v1.import_pb2 import ImportRolloutsRequest
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_FAILED, ROLLOUT_STATUS_SUCCEEDED
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

_NAMES = frozenset({"agentlightning.rollout_id", "agentlightning.attempt_id"})
_HEAD = 1 << 16


def is_otlp(path: Path) -> bool:
    """Tell whether a file looks like OTLP in JSON: its first line is not that of a rollout."""
    with path.open("rb") as file:
        return b'"resourceSpans"' in file.readline(_HEAD).split(b":", 1)[0]


def load(
    store: LightningStore, address: str, security: dict[str, Any], path: Path, *, per_trace: bool
) -> str:
    """Bring a file into the store; returns what became of it, for people. Raises ValueError."""
    sent = _Sent()
    where = endpoint(address, **security)
    with where.blocking_channel([]) as channel:
        export = TraceServiceStub(channel).Export  # type: ignore[no-untyped-call]
        for batch in _batches(path):
            named = _part(batch, named=True)
            if named.spans:
                try:
                    answer = export(_request(named), timeout=DEADLINE, metadata=where.metadata)
                except grpc.RpcError as error:
                    raise from_rpc_error(error) from None
                sent.count(len(named.spans), answer.partial_success)
            sent.unnamed += len(batch.spans) - len(named.spans)
    told = sent.told()
    if per_trace and sent.unnamed:
        traces = _Traces(_batches(path))
        result = store.import_rollouts(traces.messages(_batches(path)))
        # The messages of a trace need not follow each other, so what is known may be counted often.
        told += (
            f"; of {sent.unnamed} that name none: {result.imported_count} rollouts imported, "
            f"{traces.count - result.imported_count} known, "
            f"{result.accepted_span_count} spans stored, {result.duplicate_span_count} known"
        )
    elif sent.unnamed:
        told += f"; {sent.unnamed} left out that name none: --rollout-per-trace takes them"
    return told


class _Sent:
    """What became of the spans that were sent by OTLP's call."""

    def __init__(self) -> None:
        self.taken = self.unnamed = 0
        self.refused: Counter[str] = Counter()

    def count(self, spans: int, partial_success: Any) -> None:
        self.taken += spans - partial_success.rejected_spans
        if partial_success.rejected_spans:
            self.refused[partial_success.error_message] += partial_success.rejected_spans

    def told(self) -> str:
        told = f"{self.taken} spans that name their attempt stored or known"
        for why, count in self.refused.most_common(3):
            told += f"; {count} refused: {why}"
        return told


def _batches(path: Path) -> Iterator[SpanBatch]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                told = json.loads(line)
                if not isinstance(told, dict) or "resourceSpans" not in told:
                    raise ValueError("no request of traces: it has no resourceSpans")
                yield from _otlp_json.request_batches(told)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def _part(batch: SpanBatch, *, named: bool) -> SpanBatch:
    """Return the spans of a batch that name an attempt, or those that do not."""
    by_resource = _names_attempt(batch.resource)
    part = like(batch)
    part.spans.extend(s for s in batch.spans if (by_resource or _names_attempt(s)) == named)
    return part


def _names_attempt(owner: Any) -> bool:
    return any(pair.key in _NAMES for pair in owner.attributes)


def _request(batch: SpanBatch) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add(
        resource=batch.resource, schema_url=batch.resource_schema_url
    )
    resource_spans.scope_spans.add(
        scope=batch.scope, spans=batch.spans, schema_url=batch.schema_url
    )
    return request


class _Traces:
    """The rollouts that traces become: one each, with one attempt, from its first start to its last end."""

    def __init__(self, batches: Iterable[SpanBatch]) -> None:
        """Read what a rollout must know; little is held of each trace."""
        self._times: dict[bytes, tuple[int, int]] = {}
        self._failed: set[bytes] = set()
        for batch in batches:
            for span in _part(batch, named=False).spans:
                self._note(span)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._times)

    def _note(self, span: Span) -> None:
        start = span.start_time_unix_nano
        end = max(start, span.end_time_unix_nano)
        first, last = self._times.get(span.trace_id, (start, end))
        self._times[span.trace_id] = min(first, start), max(last, end)
        if not any(span.parent_span_id) and span.status.code == Status.STATUS_CODE_ERROR:
            self._failed.add(span.trace_id)

    def messages(self, batches: Iterable[SpanBatch]) -> Iterator[ImportRolloutsRequest]:
        """Yield the messages that import the traces, a batch and trace each."""
        for batch in batches:
            of: dict[bytes, SpanBatch] = {}
            for span in _part(batch, named=False).spans:
                if span.trace_id not in of:
                    of[span.trace_id] = like(batch)
                of[span.trace_id].spans.append(span)
            for trace_id, part in of.items():
                yield self._message(trace_id, part)

    def _message(self, trace_id: bytes, batch: SpanBatch) -> ImportRolloutsRequest:
        rollout_id, attempt_id = f"ro-{trace_id.hex()}", f"at-{trace_id.hex()[:8]}"
        batch.rollout_id, batch.attempt_id = rollout_id, attempt_id
        start, end = map(_stamp, self._times[trace_id])
        failed = trace_id in self._failed
        request = ImportRolloutsRequest(batches=[batch])
        request.rollout.rollout_id = rollout_id
        request.rollout.input_json = b"null"
        request.rollout.status = ROLLOUT_STATUS_FAILED if failed else ROLLOUT_STATUS_SUCCEEDED
        request.rollout.attempt_count = 1
        request.rollout.latest_attempt_id = attempt_id
        attempt = request.attempts.add(
            rollout_id=rollout_id, attempt_id=attempt_id, sequence_number=1
        )
        attempt.status = ATTEMPT_STATUS_FAILED if failed else ATTEMPT_STATUS_SUCCEEDED
        for record in (request.rollout, attempt):
            record.start_time.CopyFrom(start)
            record.end_time.CopyFrom(end)
        return request


def _stamp(nanoseconds: int) -> Timestamp:
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)
