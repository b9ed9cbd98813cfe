"""Spans out of files of the OpenTelemetry collector's file exporter: one OTLP request in JSON a line.

Spans that name their attempt go there by OTLP's own call. The others belong nowhere, unless a rollout is made
of each of their traces: then the files are read twice, first all of them for what a rollout must know of its
trace, which may be spread over files that rotate. Whatever is not a span is left out and counted, as OTLP itself does:
the rest of a trace is worth more than an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.client import ExportedRollout, LightningStore, otlp
from lightningstore.client.connection import endpoint
from lightningstore.client.datasets import attempts_at_hand, read_lines
from lightningstore.client.errors import from_rpc_error
from lightningstore.client.otlp import batch_like, split_batch
from lightningstore.service.cli import units
from lightningstore.service.cli.connection import REPEATED_SECONDS
from lightningstore.service.cli.outcomes import FINISHED, spans_told
from lightningstore.service.rules.spans import span_error
from lightningstore.service.traces.texts import printable
from lightningstore.service.traces.timeline import cut
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_FAILED, ATTEMPT_STATUS_SUCCEEDED
from lightningstore.v1.import_pb2 import ImportRolloutsRequest
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_FAILED, ROLLOUT_STATUS_SUCCEEDED
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

_NAMES = frozenset({"agentlightning.rollout_id", "agentlightning.attempt_id"})
#: Other content that the collector writes.
_OTHERS = ("resourceMetrics", "resourceLogs", "resourceProfiles")
#: Maximum number of different reasons that are kept, and that are printed.
_KEPT, _TOLD = 100, 3
#: Number of rollouts per request.
_PAGE = 500
#: The last nanosecond that a rollout's time can be; a span's may lie far behind it.
_LAST_NS = (1 << 63) - 1


def is_otlp(path: Path) -> bool:
    """Tell whether a file looks like OTLP in JSON, by the first key of its first line.

    Raises ValueError for JSON over several lines, which is neither that nor exported rollouts.
    """
    for number, line in read_lines(path):
        if line.strip() in (b"{", b"["):
            raise ValueError(f"line {number}: one JSON object a line is wanted, whole")
        first = line.split(b":", 1)[0]
        return any(f'"{key}"'.encode() in first for key in ("resourceSpans", *_OTHERS))
    return False


class OtlpFiles:
    """The OTLP files of one import."""

    def __init__(
        self, store: LightningStore, connection: Mapping[str, Any], *, per_trace: bool
    ) -> None:
        """Take the store that they go to, and whether rollouts are made of traces."""
        self._store = store
        self._where = endpoint(**connection)
        self._most = store.get_server_info().limits.span_bytes
        self._traces = _Traces() if per_trace else None
        self._again: list[Path] = []
        self._unnamed = 0
        self._seen, self._taken = False, 0

    @property
    def took_nothing(self) -> bool:
        """Whether there was something, and none of it was a span that the store has now."""
        return self._seen and not self._taken

    def load(self, path: Path) -> str:
        """Bring the spans that name their attempt into the store, and note the traces of the others.

        Returns what became of it, for people. Raises ValueError.
        """
        reading = _Reading(path, self._most)
        taken = unnamed = 0
        with self._where.blocking_channel([]) as channel:
            export = TraceServiceStub(channel).Export  # type: ignore[no-untyped-call]
            for number, batch in reading.batches():
                named = _part(batch, named=True)
                if named.spans:
                    try:
                        answer = export(
                            _request(named), timeout=REPEATED_SECONDS, metadata=self._where.metadata
                        )
                    except grpc.RpcError as error:
                        raise from_rpc_error(error) from None
                    refused = answer.partial_success.rejected_spans
                    reading.refused.add(number, answer.partial_success.error_message, refused)
                    taken += len(named.spans) - refused
                unnamed += len(batch.spans) - len(named.spans)
                if self._traces is not None:
                    self._traces.note(batch)
        self._taken += taken
        self._unnamed += unnamed
        self._seen |= bool(taken or unnamed or reading.told())
        names = "names its attempt" if taken == 1 else "name their attempt"
        told = f"{units.count(taken, 'span')} that {names} stored or known{reading.told()}"
        if self._traces is not None:
            self._again.append(path)
            return f"{told}; {unnamed} that name none"
        left = f"; {unnamed} left out that name none: --rollout-per-trace takes them"
        return told + left * bool(unnamed)

    def make_rollouts(self) -> str:
        """Make rollouts of the traces that were noted, if that was wanted; returns what became of them."""
        if self._traces is None or not self._unnamed:
            return ""
        self._traces.look_up(self._store)
        batches = (
            batch for path in self._again for _, batch in _Reading(path, self._most).batches()
        )
        result = self._store.import_rollouts(self._traces.messages(batches))
        self._taken += result.accepted_span_count + result.duplicate_span_count
        # The messages of a trace need not follow each other, so what is known may be counted often.
        return (
            f"of {self._unnamed} that name none: {units.count(result.imported_count, 'rollout')} imported, "
            f"{self._traces.count - result.imported_count} known, "
            f"{spans_told(result)}"
        )


class _Refused:
    """What was left out: how much of it for which reason, and where that was first."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._whys: dict[str, list[int]] = {}

    def add(self, line: int, why: str, count: int = 1) -> None:
        if not count:
            return
        why = cut(printable(why))
        if len(self._whys) >= _KEPT and why not in self._whys:
            why = "other reasons"
        self._whys.setdefault(why, [0, line])[0] += count

    def told(self) -> str:
        most = sorted(self._whys.items(), key=lambda item: -item[1][0])
        told = ""
        for why, (count, line) in islice(most, _TOLD):
            told += f"; {count} {self._what}: {'from ' * (count > 1)}line {line}: {why}"
        if rest := sum(count for _, (count, _) in most[_TOLD:]):
            told += f"; {rest} {self._what} for other reasons"
        return told


class _Reading:
    """One file on its way in."""

    def __init__(self, path: Path, most: int) -> None:
        self._path = path
        self._most = most
        self.refused = _Refused("refused")
        self._bad = _Refused("lines left out")
        self._others = 0

    def batches(self) -> Iterator[tuple[int, SpanBatch]]:
        """Yield the spans that a store may take, each batch with the number of its line."""
        for number, line in read_lines(self._path):
            try:
                told = json.loads(line)
                keys = told if isinstance(told, dict) else ()
                if "resourceSpans" in keys:
                    found = otlp.request_batches(told, partial(self._span, number))
                    yield from ((number, batch) for batch in found if batch.spans)
                    continue
                if not any(key in keys for key in _OTHERS):
                    raise ValueError("no request of traces: it has no resourceSpans")
                self._others += 1
            except (ValueError, RecursionError) as error:
                self._bad.add(number, str(error))

    def _span(self, line: int, told: dict[str, Any]) -> Span | None:
        try:
            span = otlp.span_from_json(told)
        except ValueError as error:
            self.refused.add(line, str(error))
            return None
        wrong = span_error(span, self._most)
        if wrong is not None:
            self.refused.add(line, wrong.message)
            return None
        return span

    def told(self) -> str:
        """Return what was left out, for people."""
        others = f"; {self._others} lines of metrics or logs passed over" if self._others else ""
        return self.refused.told() + self._bad.told() + others


def _part(batch: SpanBatch, *, named: bool) -> SpanBatch:
    """Return the spans of a batch that name an attempt, or those that do not."""
    by_resource = _names_attempt(batch.resource)
    part = batch_like(batch)
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

    def __init__(self) -> None:
        self._times: dict[bytes, tuple[int, int]] = {}
        self._failed: set[bytes] = set()
        #: Of what is in the store already, what is sent with more spans, serialised.
        self._stored: dict[bytes, bytes] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._times)

    def note(self, batch: SpanBatch) -> None:
        """Take what a rollout must know of its spans; little is held of each trace."""
        for span in _part(batch, named=False).spans:
            start = span.start_time_unix_nano
            end = max(start, span.end_time_unix_nano)
            first, last = self._times.get(span.trace_id, (start, end))
            self._times[span.trace_id] = min(first, start), max(last, end)
            if not any(span.parent_span_id) and span.status.code == Status.STATUS_CODE_ERROR:
                self._failed.add(span.trace_id)

    def look_up(self, store: LightningStore) -> None:
        """Find those that the store has: they stay as they are, else a trace could not grow."""
        ids = iter(self._times)
        while page := {_rollout_id(trace_id): trace_id for trace_id in islice(ids, _PAGE)}:
            for rollout in store.iter_rollouts(rollout_ids=page, statuses=FINISHED):
                trace_id = page[rollout.rollout_id]
                attempts = attempts_at_hand(rollout)
                if attempts is None:
                    attempts = list(store.list_attempts(rollout.rollout_id, page_size=1000))
                if any(attempt.attempt_id == _attempt_id(trace_id) for attempt in attempts):
                    (message,) = ExportedRollout(rollout, attempts).messages()
                    self._stored[trace_id] = message.SerializeToString()

    def messages(self, batches: Iterable[SpanBatch]) -> Iterator[ImportRolloutsRequest]:
        """Yield the messages that import the traces, a batch and trace each."""
        for batch in batches:
            of: dict[bytes, SpanBatch] = {}
            for span in _part(batch, named=False).spans:
                if span.trace_id not in self._times:
                    continue  # written to the file since
                if span.trace_id not in of:
                    of[span.trace_id] = batch_like(batch)
                of[span.trace_id].spans.append(span)
            for trace_id, whole in of.items():
                for part in split_batch(whole):
                    request = self._request(trace_id)
                    part.rollout_id, part.attempt_id = _rollout_id(trace_id), _attempt_id(trace_id)
                    request.batches.append(part)
                    yield request

    def _request(self, trace_id: bytes) -> ImportRolloutsRequest:
        if trace_id in self._stored:
            return ImportRolloutsRequest.FromString(self._stored[trace_id])
        rollout_id, attempt_id = _rollout_id(trace_id), _attempt_id(trace_id)
        failed = trace_id in self._failed
        request = ImportRolloutsRequest()
        request.rollout.rollout_id = rollout_id
        request.rollout.input_json = b"null"
        request.rollout.status = ROLLOUT_STATUS_FAILED if failed else ROLLOUT_STATUS_SUCCEEDED
        request.rollout.attempt_count = 1
        request.rollout.latest_attempt_id = attempt_id
        attempt = request.attempts.add(
            rollout_id=rollout_id, attempt_id=attempt_id, sequence_number=1
        )
        attempt.status = ATTEMPT_STATUS_FAILED if failed else ATTEMPT_STATUS_SUCCEEDED
        start, end = map(_stamp, self._times[trace_id])
        for record in (request.rollout, attempt):
            record.start_time.CopyFrom(start)
            record.end_time.CopyFrom(end)
        return request


def _rollout_id(trace_id: bytes) -> str:
    return f"ro-{trace_id.hex()}"


def _attempt_id(trace_id: bytes) -> str:
    return f"at-{trace_id.hex()[:8]}"


def _stamp(nanoseconds: int) -> Timestamp:
    seconds, nanos = divmod(min(nanoseconds, _LAST_NS), 10**9)
    return Timestamp(seconds=seconds, nanos=nanos)
