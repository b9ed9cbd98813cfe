"""Row 15: loads that are known to have held the event loop, each with a prober beside it."""

from __future__ import annotations

import contextlib
import gzip
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.rules.consumers import MAX_ITEMS
from lightningstore.service.rules.wire import field
from lightningstore.v1.attempt_pb2 import (
    ATTEMPT_STATUS_SUCCEEDED,
    Attempt,
    AttemptRef,
    UpdateAttemptRequest,
)
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest
from lightningstore.v1.completion_pb2 import WaitForRolloutsRequest
from lightningstore.v1.consumer_pb2 import (
    CONSUMER_UNIT_ROLLOUT,
    Consumer,
    CreateConsumerRequest,
    PullFinishedRequest,
    PullFinishedResponse,
)
from lightningstore.v1.import_pb2 import ImportRolloutsRequest
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_MODE_TRAIN,
    ROLLOUT_MODE_VAL,
    ROLLOUT_STATUS_SUCCEEDED,
    CancelRolloutsRequest,
    EnqueueRolloutsRequest,
    GroupSpec,
    Rollout,
    RolloutSpec,
)
from lightningstore.v1.span_pb2 import (
    AddSpansRequest,
    IngestSpansRequest,
    QuerySpansRequest,
    SpanBatch,
)
from lightningstore.v1.statistics_pb2 import GetStatisticsResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks import spans
from benchmarks.bench import Bench
from benchmarks.grpc_client import EXPORT, INPUT, PATH
from benchmarks.stalls import Ground, ground, paused_backup

MIB = 1 << 20
BOUND_MS = 50.0
#: The guard fails at this many times the bound: a busy machine adds to processor time too, by cold caches.
SLACK = 4.0
#: Share of the full sizes in the quick form.
QUICK_SCALE = 0.1


def stalls(bench: Bench) -> None:
    """Run all loads; adds how long each held the loop, and how long the prober waited."""
    scale = QUICK_SCALE if bench.quick else 1.0
    for load in LOADS:
        bench.say(load.__name__)
        with ground(bench.folder, scale, "--otlp-http-port", "0") as place:
            load(place)
        _add(bench, place)
    bench.say("retention")
    _add(bench, _retention(bench.folder, scale))


def _add(bench: Bench, place: Ground) -> None:
    for seen in place.seen:
        held = [seen.cpu_ms]
        bench.add("15", f"{seen.row}: loop held", "ms", held, BOUND_MS, at_least=False, slack=SLACK)
        bench.add("15", f"{seen.row}: loop held, by the clock", "ms", [seen.wall_ms])
        bench.add("15", f"{seen.row}: longest answer to the prober", "ms", [seen.gap_ms])
        bench.add("15", f"{seen.row}: longest write of the prober", "ms", [seen.write_gap_ms])
        bench.trials.append({"kind": "stall", "parts": {}, **vars(seen)})
        bench.say(
            f"    {seen.row}: loop held {seen.cpu_ms:.0f} ms ({seen.wall_ms:.0f} by the clock), prober "
            f"{seen.gap_ms:.0f} ms, its writes {seen.write_gap_ms:.0f} ms, {seen.seconds:.1f} s, {seen.peak_rss_mb:,.0f} MB: {seen.outcome}"
        )


def queue(place: Ground) -> None:
    """Enqueue, claim and cancel 10,000 rollouts, in as few calls as the server allows."""
    with place.row("enqueue 10,000"):
        place.enqueue(10_000)
    with place.row("claim 10,000") as outcome:
        claimed = place.claim(10_000)
        if len(claimed) != 10_000:
            outcome.append(f"{len(claimed)} claimed")
    ids = place.enqueue(10_000)
    most = place.batch_items
    with place.row("cancel 10,000"):
        for start in range(0, len(ids), most):
            place.call(
                "CancelRollouts", CancelRolloutsRequest(rollout_ids=ids[start : start + most])
            )


def groups(place: Ground) -> None:
    """Create many groups in one call and a group of many members; cancel its members and pull them."""
    count = place.items(10_000)
    consumer = Consumer(name="trainer", unit=CONSUMER_UNIT_ROLLOUT)
    place.call("CreateConsumer", CreateConsumerRequest(consumer=consumer))
    many = [GroupSpec(group_id=f"g-{n}", size=1) for n in range(count)]
    one = GroupSpec(group_id="large", size=count)
    with place.row("enqueue 10,000 groups"):
        place.enqueue_groups(many, [spec.group_id for spec in many])
    with place.row("enqueue a group of 10,000"):
        ids = place.enqueue_groups([one], [one.group_id] * count)
    with place.row("cancel a group of 10,000"):
        place.call("CancelRollouts", CancelRolloutsRequest(rollout_ids=ids))
    with place.row("PullFinished of 1,000") as outcome:
        pull = PullFinishedRequest(consumer=consumer.name, max_items=min(count, MAX_ITEMS))
        answer = PullFinishedResponse.FromString(place.call("PullFinished", pull))
        if len(answer.deliveries) != pull.max_items:
            outcome.append(f"{len(answer.deliveries)} delivered")


def empty_rollouts(place: Ground) -> None:
    """Enqueue as many empty rollouts as fit into a message."""
    with place.row("EnqueueRollouts, 60 MiB of empty rollouts"):
        place.call("EnqueueRollouts", b"\x0a\x00" * (30 * MIB))


def waits(place: Ground) -> None:
    """Wait for a million rollouts that there are not."""
    unknown = WaitForRolloutsRequest(rollout_ids=[f"ro-{n:012x}" for n in range(1_000_000)])
    with place.row("WaitForRollouts, 1,000,000 unknown ids"):
        place.stream("WaitForRollouts", unknown)


def strangers(place: Ground) -> None:
    """Export spans of rollouts that there are not, each of another."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(50_000):
        span = scope.spans.add(trace_id=b"t" * 16, span_id=number.to_bytes(8, "big"))
        for key, value in (("rollout_id", f"ro-{number}"), ("attempt_id", "at-1")):
            span.attributes.add(key=f"agentlightning.{key}").value.string_value = value
    span_bytes = request.SerializeToString()
    with place.row("Export, 50,000 spans of unknown rollouts"):
        place.call(EXPORT, span_bytes)


def _packed(spans_bytes: bytes) -> bytes:
    """Return an ExportTraceServiceRequest around the serialised spans of one scope."""
    return field(1, field(2, spans_bytes))


def empty_spans(place: Ground) -> None:
    """Export spans without a byte in them: two bytes each on the wire, several hundred as objects."""
    many = _packed(b"\x12\x00" * (2 * MIB))
    with place.row("Export, 4 MiB of empty spans"):
        place.call(EXPORT, many)
    port, data = place.info().otlp_http_port, gzip.compress(many)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/traces",
        data,
        {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"},
    )
    with place.row(f"OTLP/HTTP, {len(data) // 1000} KB of gzip with them") as outcome:
        try:
            urllib.request.urlopen(request, timeout=180).close()
        except urllib.error.HTTPError as error:
            outcome.append(f"HTTP {error.code}")


def _tiny(count: int) -> bytes:
    """Return the spans of a scope, or of a batch: both have them in field 2, with ids and nothing else."""
    head, trace = b"\x12\x1c", b"\x0a\x10" + b"t" * 16
    return b"".join(
        head + trace + b"\x12\x08" + number.to_bytes(8, "big") for number in range(1, count + 1)
    )


def tiny_spans(place: Ground) -> None:
    """Send as many spans as fit into a message."""
    tiny = _tiny(1_800_000)
    with place.row("Export, 1,800,000 tiny spans"):
        place.call(EXPORT, _packed(tiny))
    attempt = place.attempt()
    ids = field(11, attempt.rollout_id.encode()) + field(12, attempt.attempt_id.encode())
    with place.row("IngestSpans, 1,800,000 tiny spans in a message"):
        place.send("IngestSpans", [field(1, tiny + ids)])


def large_message(place: Ground) -> None:
    """Send a message of 29 MiB as it is, and one that gRPC packs into about as much."""
    attempt = place.attempt()
    made = spans.block(1000, 7)
    for name, size, compression in (
        ("plain", 29 * MIB, None),
        ("gzip, 58 unpacked", 58 * MIB, grpc.Compression.Gzip),
    ):
        batch = SpanBatch(rollout_id=attempt.rollout_id, attempt_id=attempt.attempt_id)
        filled = 0
        while (
            filled < size
        ):  # a few thousand spans, so that their number is no reason to refuse them
            number = len(batch.spans)
            span = batch.spans.add()
            for part in range(8):
                span.MergeFrom(made[(number + part) % 1000])
            span.span_id = f"{name[0]}{number:07}".encode()
            filled += span.ByteSize()
        data = IngestSpansRequest(batch=batch).SerializeToString()
        method = place.channel.stream_unary(PATH + "IngestSpans")
        with place.row(f"IngestSpans, a message of 29 MiB, {name}"):
            method(iter([data]), timeout=180, compression=compression)


def interleaved(place: Ground) -> None:
    """Query spans of two batches whose sequence ids take turns."""
    attempt, count = place.attempt(), 10_000
    for part in range(2):
        batch = SpanBatch(rollout_id=attempt.rollout_id, attempt_id=attempt.attempt_id)
        for number in range(count):
            span_id = (2 * number + part + 1).to_bytes(8, "big")
            batch.spans.append(Span(trace_id=b"t" * 16, span_id=span_id))
            batch.sequence_ids.append(2 * number + part + 1)
        place.call("AddSpans", AddSpansRequest(batch=batch))
    for name, more in (("", {}), (", limit 1", {"limit": 1})):
        with place.row(f"QuerySpans on interleaved ids{name}"):
            place.stream("QuerySpans", QuerySpansRequest(rollout_id=attempt.rollout_id, **more))


def polls(place: Ground) -> None:
    """Report outcomes while polls wait for a mode that is not in the queue of many priorities."""
    place.enqueue(200, mode=ROLLOUT_MODE_TRAIN)
    claimed = place.claim(200)
    priorities = place.items(10_000)
    most = place.batch_items
    for start in range(0, priorities, most):
        part = range(start, min(start + most, priorities))
        specs = [
            RolloutSpec(input_json=INPUT, mode=ROLLOUT_MODE_TRAIN, priority=priority)
            for priority in part
        ]
        place.call("EnqueueRollouts", EnqueueRolloutsRequest(rollouts=specs))
    poll = DequeueRolloutsRequest(limit=1, modes=[ROLLOUT_MODE_VAL])
    poll.wait.FromSeconds(60)
    waiting = [
        place.channel.unary_unary(PATH + "DequeueRollouts").future(poll.SerializeToString())
        for _ in range(90)  # of the 100 calls that a connection may have
    ]
    _until(place, lambda found: found.waiter_count >= len(waiting))
    with place.row(f"UpdateAttempt beside 90 polls × {priorities:,} priorities"):
        for ref in claimed[:50]:
            _finish(place, ref)
    for future in waiting:
        future.cancel()


def _finish(place: Ground, ref: AttemptRef) -> None:
    done = Attempt(
        rollout_id=ref.rollout_id, attempt_id=ref.attempt_id, status=ATTEMPT_STATUS_SUCCEEDED
    )
    place.call("UpdateAttempt", UpdateAttemptRequest(attempt=done))


def _until(place: Ground, holds: Callable[[GetStatisticsResponse], bool]) -> None:
    until = time.monotonic() + 180
    while not holds(GetStatisticsResponse.FromString(place.call("GetStatistics", b""))):
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.02)


def large_inputs(place: Ground) -> None:
    """Cancel rollouts with large inputs."""
    large = b'"' + b"x" * (8 * MIB) + b'"'
    ids = [place.enqueue(1, input_json=large)[0] for _ in range(place.items(150))]
    with place.row(f"cancel {len(ids)} with inputs of 8 MiB"):
        place.call("CancelRollouts", CancelRolloutsRequest(rollout_ids=ids))


def backup(place: Ground) -> None:
    """Write beside a backup whose process is stopped in the middle of the copy."""
    attempt = place.attempt()
    numbers = iter(range(1_000_000))

    def write(mib: int) -> None:
        made = spans.block(800, 3)  # about 1 MiB
        for _ in range(mib):
            batch = SpanBatch(rollout_id=attempt.rollout_id, attempt_id=attempt.attempt_id)
            for span in made:
                span.span_id = (next(numbers) + 1).to_bytes(8, "big")
            batch.spans.extend(made)
            place.call("AddSpans", AddSpansRequest(batch=batch))

    write(60)
    with paused_backup(place), place.row("writes beside a paused backup") as outcome:
        write(place.items(400))
        log = Path(f"{place.db}-wal").stat().st_size / MIB
        outcome.append(f"log of {log:,.0f} MiB")


def _retention(folder: Path, scale: float) -> Ground:
    """Remove a million spans of 20 finished rollouts, which are due together."""
    with ground(folder, scale) as place:
        count = _import_finished(place, 20, place.items(50_000))
    keep = ("--retain-finished", "1m")
    with (
        ground(folder, scale, *keep, db=place.db) as second,
        second.row(f"retention of {count:,} spans"),
    ):
        _until(second, lambda found: found.span_count == 0 and not _has_spans(second.db))
    return second


def _has_spans(db: Path) -> bool:
    """Tell whether spans are left in a data file: they may go after their rollouts, a few at a time."""
    with contextlib.closing(sqlite3.connect(f"file:{db}?mode=ro", uri=True)) as connection:
        found: int = connection.execute("SELECT EXISTS (SELECT 1 FROM spans)").fetchone()[0]
    return bool(found)


def _import_finished(place: Ground, rollouts: int, spans_each: int) -> int:
    """Add rollouts that finished an hour ago; returns the number of their spans."""
    now, most = int(time.time()), min(5_000, place.batch_items)
    times = {"start_time": Timestamp(seconds=now - 7200), "end_time": Timestamp(seconds=now - 3600)}
    batches = [
        SpanBatch(spans=spans.block(min(most, spans_each - start), start))
        for start in range(0, spans_each, most)
    ]

    def messages() -> Iterator[bytes]:
        for number in range(rollouts):
            names = {"rollout_id": f"ro-{number}", "attempt_id": f"at-{number}"}
            attempt = Attempt(**names, sequence_number=1, status=ATTEMPT_STATUS_SUCCEEDED, **times)
            rollout = Rollout(
                rollout_id=names["rollout_id"],
                input_json=INPUT,
                status=ROLLOUT_STATUS_SUCCEEDED,
                attempt_count=1,
                latest_attempt_id=names["attempt_id"],
                **times,
            )
            for batch in batches:
                batch.rollout_id, batch.attempt_id = names["rollout_id"], names["attempt_id"]
                one = ImportRolloutsRequest(rollout=rollout, attempts=[attempt], batches=[batch])
                yield one.SerializeToString()

    place.send("ImportRollouts", messages())
    return rollouts * spans_each


LOADS: tuple[Callable[[Ground], None], ...] = (
    queue,
    groups,
    empty_rollouts,
    waits,
    strangers,
    empty_spans,
    tiny_spans,
    large_message,
    interleaved,
    polls,
    large_inputs,
    backup,
)
