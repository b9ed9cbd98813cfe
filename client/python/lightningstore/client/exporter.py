"""An exporter for the OpenTelemetry SDK that streams spans to a store."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightningstore.client._exporter import outbox, process_exit
from lightningstore.client._exporter.losses import Losses
from lightningstore.client._exporter.outbox import Item
from lightningstore.client._sync.store import LightningStore
from lightningstore.client._values.text import check
from lightningstore.client.connection import ConnectionOptions, check_names
from lightningstore.client.errors import (
    CancelledCallError,
    DeadlineExceededError,
    InternalError,
    LightningStoreError,
    UnavailableError,
)
from lightningstore.client.values import IngestResult, Rejection, Stop
from lightningstore.v1.span_pb2 import IngestSpansRequest
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import export as sdk

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

MIB = 1 << 20
#: Bytes after which a stream is closed, and thereby acknowledged.
STREAM_BYTES = 16 * MIB
#: Seconds after which a stream without a response is sent again.
STREAM_TIMEOUT = 60.0
#: Seconds before the first retry, and the maximum.
FIRST_DELAY = 0.1
MAX_DELAY = 2.0
#: Internal errors of the server after which the same spans are not sent again.
MAX_DEFECTS = 5
#: Maximum attempts whose spans are counted. The oldest counts are dropped.
MAX_COUNTS = 10_000
#: Maximum milliseconds that `export` waits in the child of a fork.
CHILD_WAIT = 5_000.0
#: Maximum milliseconds that the end of a process waits for spans.
EXIT_WAIT = 4_000.0

_NO_ATTEMPT = (
    "no rollout id and attempt id; the limit of attributes may have dropped those of the span, so set "
    "them in its resource"
)
_OVER_LIMIT = "has more attributes than its tracer provider allows: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT raises the limit"

_exporters: weakref.WeakSet[SpanExporter] = weakref.WeakSet()


class SpanExporter(sdk.SpanExporter):
    """Exports OpenTelemetry spans to a store, without blocking the caller.

    `export` encodes the spans and buffers them. A thread sends them over IngestSpans, keeps them until the server has
    stored them, and sends them again after a broken connection; spans that arrive twice are stored once. So no span is
    lost while a server restarts. When the buffer is full, new spans are dropped. Dropped spans are counted in
    `dropped_count` and logged: the first of a kind at once, then a summary per minute.

    In the child of a fork, `export` waits until the spans are stored, for at most 5 seconds, because such a child may
    end without sending anything.

    The attempt of a span is named by its attributes `agentlightning.rollout_id` and `agentlightning.attempt_id`, else by
    these attributes of its resource, else by the arguments of the exporter.

    Use it with SimpleSpanProcessor. The buffer of a BatchSpanProcessor would only drop spans in addition.

    Args:
        store: Address of the server, as for `LightningStore`, or a client, which the exporter does not close.
        rollout_id: Id of the rollout of spans that name none.
        attempt_id: Id of the attempt of spans that name none.
        max_buffer_bytes: Maximum size of the buffer in bytes.
        max_span_bytes: Maximum size of a span in bytes. Larger spans are dropped, with an error in the log. The default
            is that of the server's limit.
        delay: Maximum seconds that a span waits for others, to be sent with them.
        on_stop: Called in the sending thread for each attempt that the server wants stopped.
        **connection: Options of the connection, see `ConnectionOptions`. Used with an address only.

    Raises:
        ValueError: An id is not valid UTF-8, or the address or an option is invalid.
        OSError: A TLS file cannot be read.
        TypeError: An option is unknown.

    Example:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor

        attempt = store.start_rollout({"question": 1}).attempt
        exporter = SpanExporter(store, rollout_id=attempt.rollout_id, attempt_id=attempt.attempt_id)
        provider = TracerProvider(id_generator=SystemIdGenerator())
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with provider.get_tracer("my.agent").start_as_current_span("step"):
            pass
        assert exporter.force_flush()
        provider.shutdown()
    """

    def __init__(
        self,
        store: str | LightningStore | None = None,
        *,
        rollout_id: str = "",
        attempt_id: str = "",
        max_buffer_bytes: int = 64 * MIB,
        max_span_bytes: int = 4 * MIB,
        delay: float = 0.2,
        on_stop: Callable[[Stop], object] | None = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        check("rollout_id", rollout_id)
        check("attempt_id", attempt_id)
        check_names(connection)
        self._owns_store = not isinstance(store, LightningStore)
        self._store = (
            store if isinstance(store, LightningStore) else LightningStore(store, **connection)
        )
        self._ids = (rollout_id, attempt_id)
        self._max_buffer_bytes = max_buffer_bytes
        self._max_span_bytes = max_span_bytes
        self._delay = delay
        self._on_stop = on_stop
        self._child_wait = 0.0
        self._flush_at_exit: Callable[[], object] | None = None
        self._reset()
        _exporters.add(self)

    def _reset(self) -> None:
        """Start with an empty buffer, also in the child of a fork: the parent sends what it had."""
        self._changed = threading.Condition()
        self._queue: deque[Item] = deque()
        self._bytes = 0  # of spans in the queue and being sent
        self._added = 0
        self._settled = 0
        self._hurry_to = 0  # send without delay until this number is settled
        self._stop_at: float | None = None
        self._exit_timed_out = False  # flushing at the end of the process timed out
        self._thread: threading.Thread | None = None
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._losses = Losses()

    @property
    def dropped_count(self) -> int:
        """Number of dropped spans: for lack of buffer, too large, rejected, or without an attempt."""
        return self._losses.dropped

    def export(self, spans: Sequence[ReadableSpan]) -> sdk.SpanExportResult:
        """Queue spans. This waits in the child of a fork only.

        Args:
            spans: Spans that have ended.

        Returns:
            SUCCESS, or FAILURE after `shutdown`.
        """
        return self.file(spans, None)

    def file(
        self, spans: Sequence[ReadableSpan], ids: Mapping[str, str] | None
    ) -> sdk.SpanExportResult:
        """Queue spans for an attempt.

        Args:
            spans: Spans that have ended.
            ids: The attributes that name the attempt, for spans that do not have them. None: as in `export`.

        Returns:
            SUCCESS, or FAILURE after `shutdown`.
        """
        if self._stop_at is not None:
            self._losses.drop(len(spans), "shutdown", "the exporter is shut down")
            return sdk.SpanExportResult.FAILURE
        items = self._encode(spans, ids)
        self._put(items)
        if self._child_wait and items:
            self._wait_in_child()
        return sdk.SpanExportResult.SUCCESS

    def _put(self, items: Sequence[Item]) -> None:
        with self._changed:
            for item in items:
                attempt = (item.origin.rollout_id, item.origin.attempt_id)
                self._counts[attempt] = self._counts.pop(attempt, 0) + 1
                if self._bytes + item.size > self._max_buffer_bytes:
                    self._drop(1, "buffer full", f"the buffer of {self._max_buffer_bytes} bytes")
                    continue
                self._queue.append(item)
                self._bytes += item.size
                self._added += 1
            while len(self._counts) > MAX_COUNTS:
                self._counts.popitem(last=False)
            if self._thread is None and self._queue:
                self._thread = threading.Thread(
                    target=self._run, name="lightningstore-exporter", daemon=True
                )
                self._thread.start()
                self._flush_at_exit = process_exit.register(_flush_later(self))
            self._changed.notify_all()

    def _wait_in_child(self) -> None:
        if not self.force_flush(self._child_wait):
            # Only once: the agent must not wait for each span while the server is away.
            self._child_wait = 0.0
            logger.warning(
                "the spans of process %d, the child of a fork, are not stored yet: they are lost if it "
                "ends before the server is back",
                os.getpid(),
            )

    def send_in_background(self) -> None:
        """Never wait in `export`, not even in the child of a fork: the caller flushes."""
        self._child_wait = 0.0

    def _encode(self, spans: Sequence[ReadableSpan], ids: Mapping[str, str] | None) -> list[Item]:
        items: list[Item] = []
        for span in spans:
            if span.dropped_attributes:
                self._losses.note(1, "attributes", "cut", f"{span.name!r} {_OVER_LIMIT}")
        try:
            for item in outbox.encode(spans, *self._ids, ids):
                if item is None:
                    self._drop(1, "no attempt", _NO_ATTEMPT)
                elif len(item.span) > self._max_span_bytes:
                    self._drop(
                        1,
                        "too large",
                        f"{item.name!r} has {len(item.span)} bytes, over the limit of "
                        f"{self._max_span_bytes}",
                        logging.ERROR,
                    )
                else:
                    items.append(item)
        except Exception:
            if len(spans) > 1:  # one span fails the whole encoding: encode them one by one
                return [item for span in spans for item in self._encode([span], ids)]
            self._drop(len(spans) - len(items), "no OTLP", "cannot be encoded")
            logger.exception("spans could not be encoded")
        return items

    def sent_count(self, rollout_id: str, attempt_id: str) -> int:
        """Return the number of exported spans of an attempt, including dropped ones.

        `update_attempt` takes it as `sent_span_count`, and returns how many of them are missing.

        Args:
            rollout_id: Id of the rollout.
            attempt_id: Id of the attempt.

        Returns:
            The number of spans.
        """
        with self._changed:
            return self._counts.get((rollout_id, attempt_id), 0)

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Wait until all spans that were exported so far are stored or dropped.

        Args:
            timeout_millis: Maximum milliseconds to wait.

        Returns:
            False if the time was not enough.
        """
        with self._changed:
            target = self._added
            self._hurry_to = max(self._hurry_to, target)
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: self._settled >= target, max(timeout_millis, 0) / 1000
            )

    def shutdown(self, timeout_millis: float = 4_000) -> None:
        """Send the remaining spans, and end. Spans that cannot be sent in time are dropped, with a warning.

        Args:
            timeout_millis: Maximum milliseconds to wait.
        """
        with self._changed:
            if self._stop_at is not None:
                return
            if self._exit_timed_out:
                timeout_millis = 0
            self._stop_at = time.monotonic() + timeout_millis / 1000
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_millis / 1000)
        if self._flush_at_exit is not None:
            atexit.unregister(self._flush_at_exit)
        if self._owns_store:
            self._store.close()  # ends a call in progress
        with self._changed:
            unsent = self._added - self._settled
        if unsent:
            self._drop(unsent, "shutdown", "not stored before the exporter was shut down")
        self._losses.summarize(everything=True)

    def _drop(self, count: int, kind: str, why: str, level: int = logging.WARNING) -> None:
        self._losses.drop(count, kind, why, level)

    def _run(self) -> None:
        # The gRPC calls of this thread must not become spans.
        otel_context.attach(
            otel_context.set_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY, True)
        )
        while (items := self._take()) is not None:
            try:
                if not self._deliver(items):
                    return  # shut down: `shutdown` counts the lost spans
            except Exception:
                self._drop(len(items), "defect", "see the traceback")
                logger.exception("spans could not be sent")
            with self._changed:
                self._settled += len(items)
                self._bytes -= sum(item.size for item in items)
                self._changed.notify_all()
                self._on_settled()

    def _on_settled(self) -> None:
        """Called with the lock held when spans were stored or dropped."""

    def _take(self) -> list[Item] | None:
        """Wait for spans, and return those of one stream; None at the end."""
        with self._changed:
            while not self._changed.wait_for(
                lambda: self._queue or self._stop_at is not None, self._losses.until_summary()
            ):
                self._losses.summarize()
            self._changed.wait_for(self._is_urgent, self._delay)
            if self._stop_at is not None and (not self._queue or self._is_late()):
                return None
            items: list[Item] = []
            size = 0
            while self._queue and size < STREAM_BYTES:
                items.append(self._queue.popleft())
                size += items[-1].size
            return items

    def _is_urgent(self) -> bool:
        return (
            self._stop_at is not None
            or self._settled < self._hurry_to
            or self._bytes >= outbox.BATCH_BYTES
        )

    def _is_late(self) -> bool:
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _deliver(self, items: list[Item]) -> bool:
        """Send spans until each is stored or rejected. Return False if the time of a shutdown is over."""
        messages = outbox.into_messages(items)
        while messages:
            try:
                result = self._send(messages)
            except LightningStoreError as error:
                self._give_up(messages, error)
                return True
            if result is None:
                return False
            for stop in result.stops:
                self._pass_on(stop)
            messages = self._sort_out(messages, result)
        return True

    def _pass_on(self, stop: Stop) -> None:
        if self._on_stop is not None:
            try:
                self._on_stop(stop)
            except Exception:
                logger.exception("on_stop failed")

    def _sort_out(self, messages: list[list[Item]], result: IngestResult) -> list[list[Item]]:
        """Return the spans to send again: an invalid span rejects its whole batch."""
        again: list[list[Item]] = []
        reported = 0
        for rejection in result.rejections:
            members = messages[rejection.message_index]
            # Fewer than all: single spans, such as those with conflicting ids. The others are stored.
            some = 0 < rejection.span_count < len(members)
            rejected = rejection.span_count if some else len(members)
            reported += rejected
            if len(members) == 1 or some or _is_about_attempt(rejection):
                self._drop(
                    rejected,
                    rejection.reason,
                    f"rejected by the server: {rejection.message}",
                    logging.ERROR,
                )
            else:
                again.extend([item] for item in members)
        if reported < result.rejected_count:
            # Only the first rejections are reported. Send what follows again: stored spans are skipped.
            last = max((r.message_index for r in result.rejections), default=len(messages) - 1)
            rest = messages[last + 1 :]
            again.extend(rest)
            if not rest:
                self._drop(
                    result.rejected_count - reported,
                    "no reason",
                    "rejected by the server without a reason",
                    logging.ERROR,
                )
        return again

    def _send(self, messages: list[list[Item]]) -> IngestResult | None:
        """Send messages over one stream until it is answered. Return None if a shutdown ended the tries.

        Raises LightningStoreError for an error that is not retryable.
        """
        delay = FIRST_DELAY
        defects = 0
        while True:
            try:
                return self._try(messages)
            except (UnavailableError, DeadlineExceededError) as error:
                failure: LightningStoreError = error
            except CancelledCallError:
                if self._stop_at is None:
                    raise
                return None
            except LightningStoreError as error:
                defects += isinstance(error, InternalError)
                perhaps = isinstance(error, InternalError) and defects < MAX_DEFECTS
                if error.retry_delay is None and not perhaps:
                    raise
                failure = error
            logger.debug("spans not sent yet: %s", failure)
            if not self._pause(max(delay, failure.retry_delay or 0.0)):
                return None
            delay = min(delay * 2, MAX_DELAY)

    def _pause(self, delay: float) -> bool:
        """Wait before another try. Return False if there is no time for one."""
        with self._changed:
            if self._stop_at is not None:
                time_left = self._stop_at - time.monotonic()
                self._changed.wait(max(min(delay, time_left), 0))
                return time_left > delay
            # A flush does not shorten the wait for a server that is away; a shutdown does.
            self._changed.wait_for(lambda: self._stop_at is not None, delay)
            return True

    def _try(self, messages: list[list[Item]]) -> IngestResult:
        timeout = STREAM_TIMEOUT
        if self._stop_at is not None:
            timeout = min(timeout, max(self._stop_at - time.monotonic(), 0.001))

        def requests() -> Iterator[IngestSpansRequest]:
            for members in messages:
                yield IngestSpansRequest(batch=outbox.to_batch(members))

        answer: Any = self._store._transport.client_stream("IngestSpans", requests(), timeout)
        return IngestResult.from_message(answer.result)

    def _give_up(self, messages: list[list[Item]], error: LightningStoreError) -> None:
        count = sum(len(members) for members in messages)
        self._drop(count, type(error).__name__, f"rejected by the server: {error}", logging.ERROR)


def _is_about_attempt(rejection: Rejection) -> bool:
    """Tell whether a batch is rejected for what its spans share."""
    return rejection.reason.endswith("_NOT_FOUND")


def _flush_later(exporter: SpanExporter) -> Callable[[], None]:
    """Return a function that flushes an exporter at the end of the process, unless it is shut down or gone."""
    reference = weakref.ref(exporter)

    def flush() -> None:
        known = reference()
        if known is not None and known._stop_at is None and not known.force_flush(EXIT_WAIT):
            # A tracer provider may shut the exporter down after this: it must not wait as long again.
            known._exit_timed_out = True
            logger.warning("the process ends before its spans are stored")

    return flush


def _after_fork() -> None:
    for exporter in list(_exporters):
        exporter._reset()
        exporter._child_wait = CHILD_WAIT


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
